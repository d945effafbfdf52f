#!lua name=switchyard_@VERSION@
--[[
The ledger's functions: everything that changes a quota, each call of one atomic.

All keys of an account (a team, or a provider's shared limits) begin with the same `sy:{account}:`, so they live in one
slot. KEYS[1] names one of them and so the slot; the others are derived from the prefix in ARGV[1].

Rules kept here:
  - Integers only. Numbers are doubles: exact up to 2^53, and written with %.0f, never by tostring (14 digits).
  - The server's clock decides. Callers pass the calendar windows they reckon with; a window that is not the current one
    is refused (CLOCK) with the server's time and the current ones, and the caller reckons again. A clock that steps
    back changes nothing, nor does another time zone: the window that a counter is in stays in force until its end.
  - Holds lie beside what is spent, each with a lease. spent + held <= limit holds after every call, but for a call that
    used more than its hold.
  - Every function may be repeated: a call's id has a hold, or a tombstone (24 h), or neither. A tombstone is empty when the
    call was settled, and begins with s (and the bill that was charged) when its lease ended first.
  - What takes nothing of a limit (a free model of one in money) passes it, whatever is left.
  - reserve is refused when the store is out of memory; what gives back, ends or revokes is not.

A check is [kind, suffix, field, limit, amount, start, stop, measure]:
  kind 'b': a budget or a number of places, in the hash `suffix`: field..':w' and ':e' start and end of its window, ':s' spent,
    ':h' held.
  kind 'w': at most `limit` in any 60 seconds, in the hash `suffix`: one field for each second, s their sum, l the latest.
  start, stop: the window in Unix seconds; 0 and 0 where there is none. measure: 1 requests, 2 tokens, 3 cost, 4 places.
A bill is [requests, tokens, cost, usage prefix, {metric, amount, ...}, hour, day, row]: what was used, for the counters, and
how it is told. requests is -1 for a call that was never admitted as far as its caller knows. The usage prefix is the key and
a tab, a metric is `<model>\t<provider>\t<name>`.

What is used is added up for reports (`uh:<hour>` and `ud:<day>`, by key, model and provider), and for pages in sums that are
read whole however many calls and keys there are:
  sh:<hour>             all keys together: the metrics as they are, and `\t\trefused`; beyond MOST_FIELDS of them the model is `other`
  km:<key>:<day>        the set of `<model>\t<provider>` that a key has used: with it the key's own sums are found by name
  kr:<key>:<day>        `<hour>\t<name>`: what a key used of models that are not in its set, which holds MOST_MODELS at the most
  rh:<hour>             how often each key was refused by a limit; with `\t<limit>` after it, by which
  top:<day>:<what>      the day's keys in order of what they cost, their tokens, or how often a limit refused them
  errors                a stream like `recent`, of failed and lost calls and of the first refusal of a key by a limit in an hour
]]

local LEASES, HOLDS, RECENT, ERRORS = 'leases', 'holds', 'recent', 'errors'
local MINUTE = 60
local KEEP_TOMBSTONES = 25 * 3600
local KEEP_HOURS = 35 * 86400
local KEEP_DAYS = 400 * 86400
local KEEP_SUMS = 8 * 86400
local KEEP_KEYS = 3 * 86400
local MOST_RECENT = 2000
local MOST_ERRORS = 200
local MOST_FIELDS = 1000
local MOST_MODELS = 50
local ORDERED = {cost = 'cost', ['in'] = 'tokens', out = 'tokens'}

local OK, REFUSED, STALE, CLOCK, DONE, EXPIRED = 1, 0, 2, 4, 5, 6
local SPENT, TOO_LARGE, HELD, RATE = 1, 2, 3, 4
local REQUESTS, PLACES = 1, 4
local NEVER = -1

local function int(number)
  return string.format('%.0f', number)
end

local function count(text)
  return tonumber(text or '0') or 0
end

local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function add(key, field, amount)
  if amount ~= 0 then
    redis.call('HINCRBY', key, field, int(amount))
  end
end

-- What is spent and held in the window that began at `start`; the window that the counter is in (0: none yet), and its end.
local function standing(key, field, start)
  local stored = redis.call('HMGET', key, field .. ':w', field .. ':s', field .. ':h', field .. ':e')
  local window, stop = tonumber(stored[1] or ''), count(stored[4])
  if window ~= start then
    return 0, 0, window or 0, stop
  end
  return count(stored[2]), count(stored[3]), window, stop
end

local function open_window(key, field, start, stop)
  local stored = tonumber(redis.call('HGET', key, field .. ':w') or '')
  if stored == nil or stored < start then
    redis.call('HSET', key, field .. ':w', int(start), field .. ':e', int(stop), field .. ':s', '0', field .. ':h', '0')
    return true
  end
  return stored == start
end

local function let_go(key, field, amount)
  if amount ~= 0 and redis.call('HINCRBY', key, field .. ':h', int(-amount)) < 0 then
    redis.call('HSET', key, field .. ':h', '0') -- the counter was lost or written anew meanwhile
  end
end

-- The sum of the last 60 seconds, after dropping what is older; and the second it is now (never before the latest).
local function recent_sum(key, now)
  local second = math.floor(now / 1000)
  local known = redis.call('HMGET', key, 's', 't', 'l')
  if not known[1] then
    return 0, second, nil
  end
  local sum, oldest, latest = count(known[1]), count(known[2]), count(known[3])
  if latest > second then
    -- The clock stepped back: what was counted counts from now on, once more for a minute.
    redis.call('DEL', key)
    redis.call('HSET', key, int(second), int(sum), 's', int(sum), 't', int(second), 'l', int(second))
    redis.call('EXPIRE', key, 4 * MINUTE)
    return sum, second, second
  end
  if oldest < second - MINUTE then
    local all = redis.call('HGETALL', key)
    local dead, first = {}, nil
    for at = 1, #all, 2 do
      local when = tonumber(all[at])
      if when then
        if when < second - MINUTE then
          dead[#dead + 1] = all[at]
          sum = sum - count(all[at + 1])
        elseif first == nil or when < first then
          first = when
        end
      end
    end
    if first == nil then
      redis.call('DEL', key)
      return 0, second, nil
    end
    redis.call('HDEL', key, unpack(dead))
    redis.call('HSET', key, 's', int(sum), 't', int(first))
  end
  return sum, second, latest
end

-- Milliseconds until `amount` fits: until enough of the oldest seconds have left the window.
local function until_fits(key, now, sum, limit, amount)
  local all = redis.call('HGETALL', key)
  local seconds = {}
  for at = 1, #all, 2 do
    local when = tonumber(all[at])
    if when then
      seconds[#seconds + 1] = {when, count(all[at + 1])}
    end
  end
  table.sort(seconds, function(a, b) return a[1] < b[1] end)
  for _, second in ipairs(seconds) do
    sum = sum - second[2]
    if sum + amount <= limit then
      return math.max((second[1] + MINUTE + 1) * 1000 - now, 1)
    end
  end
  return (MINUTE + 1) * 1000
end

-- Take what a call holds: of budgets and places, and of what passes in a minute.
local function hold_budgets(prefix, checks)
  for _, check in ipairs(checks) do
    if check[1] == 'b' and open_window(prefix .. check[2], check[3], check[6], check[7]) then
      add(prefix .. check[2], check[3] .. ':h', check[5])
    end
  end
end

local function hold_rates(prefix, checks, second)
  for _, check in ipairs(checks) do
    if check[1] == 'w' and check[5] ~= 0 then
      local key, name = prefix .. check[2], int(second)
      redis.call('HSETNX', key, 't', name)
      redis.call('HINCRBY', key, name, int(check[5]))
      redis.call('HINCRBY', key, 's', int(check[5]))
      redis.call('HSET', key, 'l', name)
      redis.call('EXPIRE', key, 4 * MINUTE)
    end
  end
end

local NOTHING = {0, 0, 0, '', {}, '', '', ''}

-- End the holds of a call (`held`: it had any) and charge what it used, `before` of which has been charged already.
-- In a rate, a call that was admitted stays counted whatever became of it, and keeps its tokens until somebody tells others.
local function charge(prefix, checks, held, second, used, before)
  for _, check in ipairs(checks) do
    local key, field, amount, measure = prefix .. check[2], check[3], check[5], check[8]
    local actual = measure == PLACES and 0 or math.max(used[measure], 0) - math.max(before[measure], 0)
    if check[1] == 'b' then
      if held then
        local window = tonumber(redis.call('HGET', key, field .. ':w') or '')
        if window == check[6] then
          let_go(key, field, amount)
          add(key, field .. ':s', actual)
        elseif window == nil and open_window(key, field, check[6], check[7]) then
          add(key, field .. ':s', actual) -- the counter was lost, and with it the hold
        end
      elseif actual ~= 0 and open_window(key, field, check[6], check[7]) then
        add(key, field .. ':s', actual)
      end
    elseif second then
      -- Back to the second in which it was taken, while that still counts.
      local difference = held and actual - amount or actual
      if used[1] == NEVER then
        difference = -amount
      elseif measure == REQUESTS or used == NOTHING then
        difference = 0
      end
      local name = int(second)
      local taken = difference ~= 0 and redis.call('HGET', key, name)
      if taken then
        difference = math.max(difference, -count(taken)) -- less is left where the clock stepped back
        add(key, name, difference)
        add(key, 's', difference)
      end
    end
  end
end

-- Add to a sum; a hash is kept for so many seconds after its first one. Answers whether the field is new.
local function sum(key, field, amount, keep)
  local new = amount ~= 0 and redis.call('HINCRBY', key, field, int(amount)) == amount
  if new then
    redis.call('EXPIRE', key, keep, 'NX')
  end
  return new
end

local function order(prefix, day, what, key, amount)
  if amount ~= 0 then
    local name = prefix .. 'top:' .. day .. ':' .. what
    if tonumber(redis.call('ZINCRBY', name, int(amount), key)) == amount then
      redis.call('EXPIRE', name, KEEP_KEYS, 'NX')
    end
  end
end

-- Add to an hour's sums; answers what they name the model and provider. Callers may ask for any number of models where a
-- pattern routes them: one that comes when there are MOST_FIELDS is `other`.
local function sum_of_all(all, where, name, amount)
  local field = where .. '\t' .. name
  if sum(all, field, amount, KEEP_SUMS) and redis.call('HLEN', all) > MOST_FIELDS
      and (name == 'calls' or redis.call('HEXISTS', all, where .. '\tcalls') == 0) then
    redis.call('HDEL', all, field)
    where = string.gsub(where, '^.*\t', 'other\t')
    sum(all, where .. '\t' .. name, amount, KEEP_SUMS)
  end
  return where
end

-- Whether a key's set of models has no room for one more.
local function no_room(used, where)
  if redis.call('SISMEMBER', used, where) == 1 then
    return false
  end
  if redis.call('SCARD', used) >= MOST_MODELS then
    return true
  end
  redis.call('SADD', used, where)
  redis.call('EXPIRE', used, KEEP_KEYS, 'NX')
  return false
end

local function note(prefix, bill, sign)
  if bill[4] == '' then
    return
  end
  local metrics, hour, day, key = bill[5], bill[6], bill[7], string.sub(bill[4], 1, -2)
  local by_hour, by_day, all = prefix .. 'uh:' .. hour, prefix .. 'ud:' .. day, prefix .. 'sh:' .. hour
  local orders, last, rest, shown = {cost = 0, tokens = 0}, nil, nil, nil
  for at = 1, #metrics, 2 do
    local metric, amount = metrics[at], metrics[at + 1] * sign
    local where, name = string.match(metric, '^(.*)\t(.*)$')
    sum(by_hour, bill[4] .. metric, amount, KEEP_HOURS)
    sum(by_day, bill[4] .. metric, amount, KEEP_DAYS)
    if where ~= last then
      last = where
      shown, rest = sum_of_all(all, where, name, amount), no_room(prefix .. 'km:' .. key .. ':' .. day, where)
    else
      sum(all, shown .. '\t' .. name, amount, KEEP_SUMS)
    end
    if rest then
      sum(prefix .. 'kr:' .. key .. ':' .. day, hour .. '\t' .. name, amount, KEEP_KEYS)
    end
    local what = ORDERED[name]
    if what then
      orders[what] = orders[what] + amount
    end
  end
  order(prefix, day, 'cost', key, orders.cost)
  order(prefix, day, 'tokens', key, orders.tokens)
end

local function failed(bill)
  local metrics = bill[5]
  for at = 1, #metrics, 2 do
    if string.sub(metrics[at], -7) == '\terrors' and metrics[at + 1] > 0 then
      return true
    end
  end
  return false
end

local function tell(prefix, row, bad)
  if row and row ~= '' then
    redis.call('XADD', prefix .. RECENT, 'MAXLEN', '~', MOST_RECENT, '*', 'r', row)
    if bad then
      redis.call('XADD', prefix .. ERRORS, 'MAXLEN', '~', MOST_ERRORS, '*', 'r', row)
    end
  end
end

-- Count a call that a limit refused.
local function turn_away(prefix, hour, key, day, row, check)
  sum(prefix .. 'sh:' .. hour, '\t\trefused', 1, KEEP_SUMS)
  order(prefix, day, 'refused', key, 1)
  local refusals = prefix .. 'rh:' .. hour
  local name = string.match(check[2], '^[nw]:team%f[:%z]') and 'team.' .. check[3] or check[3]
  sum(refusals, key, 1, KEEP_KEYS)
  if sum(refusals, key .. '\t' .. name, 1, KEEP_KEYS) and row ~= '' then
    local told = string.sub(row, 1, -2) .. ',"status":429,"outcome":"limit","limit":' .. cjson.encode(name) .. '}'
    redis.call('XADD', prefix .. ERRORS, 'MAXLEN', '~', MOST_ERRORS, '*', 'r', told)
  end
end

local function bury(prefix, hour, id, what)
  local key = prefix .. 'done:' .. hour
  redis.call('HSET', key, id, what)
  redis.call('EXPIRE', key, KEEP_TOMBSTONES, 'NX')
end

-- End calls whose lease is over: charge what their last heartbeat said, free the rest.
local function sweep_some(prefix, now, most)
  local late = redis.call('ZRANGEBYSCORE', prefix .. LEASES, '-inf', int(now), 'LIMIT', 0, most)
  for _, id in ipairs(late) do
    local raw = redis.call('HGET', prefix .. HOLDS, id)
    redis.call('ZREM', prefix .. LEASES, id)
    if raw then
      local held = cmsgpack.unpack(raw) -- {hour, second, checks, bill}
      local bill = held[4] ~= '' and cmsgpack.unpack(held[4]) or NOTHING
      redis.call('HDEL', prefix .. HOLDS, id)
      charge(prefix, cmsgpack.unpack(held[3]), true, held[2], bill, NOTHING)
      note(prefix, bill, 1)
      tell(prefix, bill[8] ~= '' and bill[8] or '{"id":"' .. id .. '","lost":true}', true)
      bury(prefix, held[1], id, 's' .. held[4])
    end
  end
  return #late
end

--[[ reserve: ARGV prefix, call id, hour of the call, checks, lease (ms), key record name, its etag, team record name, its etag,
valid until (ms, 0 for ever), row, key id and day of the call (both empty for a provider). Names may be empty (a provider's account has no records); an empty etag stands for no record.
Answers {OK, now, (remaining, reset in ms from now, 0 for never) for each check} or
{REFUSED, now, number of the check from 0, why, spent, held, retry in ms (0: no time helps)}, {STALE, now, key record or false,
team record or false}, {CLOCK, now, (start, end) of the window that it is in, 0 for none, for each check}, {DONE, now}, {EXPIRED, now}. ]]
local function reserve(_, argv)
  local prefix, id = argv[1], argv[2]
  local now = milliseconds()
  sweep_some(prefix, now, 20) -- first: it may end this very call
  if redis.call('HEXISTS', prefix .. 'done:' .. argv[3], id) == 1 then
    return {DONE, now}
  end
  local again = redis.call('HEXISTS', prefix .. HOLDS, id) == 1 -- it was admitted, whatever has changed since
  local stale = false
  local records = {false, false}
  for at = 1, 2 do
    local name, etag = argv[4 + 2 * at], argv[5 + 2 * at]
    if name ~= '' then
      local raw = redis.call('GET', name)
      if (raw and string.sub(raw, 1, #etag + 1) or '\n') ~= etag .. '\n' then
        stale = true
      end
      records[at] = raw
    end
  end
  if stale and not again then
    return {STALE, now, records[1], records[2]}
  end
  local ends = tonumber(argv[10])
  if ends > 0 and now >= ends and not again then
    return {EXPIRED, now}
  end
  local checks = cmsgpack.unpack(argv[4])
  local answer = {OK, now}
  local refusal, worst = nil, -1
  local clock, windows = false, {}
  local second = math.floor(now / 1000)
  for index, check in ipairs(checks) do
    local key, limit, amount, start, stop = prefix .. check[2], check[4], check[5], check[6], check[7]
    if again then
      amount = 0
    end
    local why, spent, held, retry, reset = nil, 0, 0, 0, 0
    if check[1] == 'b' then
      local window, ends
      spent, held, window, ends = standing(key, check[3], start)
      if window > start or (window < start and ends * 1000 > now) or (stop > 0 and now >= stop * 1000)
          or (start * 1000 > now and window ~= start) then
        clock = true
      end
      windows[index] = {window, ends}
      reset = stop > 0 and math.max(stop * 1000 - now, 1) or 0
      if amount > 0 and spent + held + amount > limit then
        retry = reset
        if amount > limit then
          why, retry = TOO_LARGE, 0
        elseif spent + amount > limit then
          why = SPENT
        else
          why, retry = HELD, 1000
        end
      end
    else
      local sum, _, latest = recent_sum(key, now)
      spent = sum
      reset = ((amount == 0 and latest or second) + MINUTE + 1) * 1000 - now
      if amount > 0 and sum + amount > limit then
        if amount > limit then
          why = TOO_LARGE
        else
          why, retry = RATE, until_fits(key, now, sum, limit, amount)
        end
      end
    end
    if why and not again then
      -- What no time mends is told first, then what takes longest.
      local weight = (why == TOO_LARGE and 2e15) or (why == SPENT and retry == 0 and 1e15) or retry
      if weight > worst then
        worst = weight
        refusal = {REFUSED, now, index - 1, why, spent, held, retry}
      end
    end
    answer[#answer + 1] = math.max(limit - spent - held - amount, 0)
    answer[#answer + 1] = reset
  end
  if clock and not again then
    local starts = {CLOCK, now}
    for index = 1, #checks do
      -- Of all: the caller may have reckoned only some of them rightly.
      starts[#starts + 1] = windows[index] and windows[index][1] or 0
      starts[#starts + 1] = windows[index] and windows[index][2] or 0
    end
    return starts
  end
  if refusal then
    if argv[12] ~= '' then
      turn_away(prefix, argv[3], argv[12], argv[13], argv[11], checks[refusal[3] + 1])
    end
    return refusal
  end
  if not again then
    hold_budgets(prefix, checks)
    hold_rates(prefix, checks, second)
    redis.call('HSET', prefix .. HOLDS, id, cmsgpack.pack({argv[3], second, argv[4], ''}))
    tell(prefix, argv[11])
  end
  redis.call('ZADD', prefix .. LEASES, int(now + tonumber(argv[5])), id)
  return answer
end

--[[ settle: ARGV prefix, call id, hour of the call, checks, bill, key id (empty for a provider).
Answers {1, now} when this ended the call, {0, now} when it had ended before. ]]
local function settle(_, argv)
  local prefix, id, hour = argv[1], argv[2], argv[3]
  local now = milliseconds()
  local tombstone = redis.call('HGET', prefix .. 'done:' .. hour, id)
  if tombstone == '' then
    return {0, now}
  end
  local bill = cmsgpack.unpack(argv[5])
  if tombstone then
    -- Its lease ended first: charge the difference to what its last heartbeat said.
    local before = #tombstone > 1 and cmsgpack.unpack(string.sub(tombstone, 2)) or NOTHING
    charge(prefix, cmsgpack.unpack(argv[4]), false, nil, bill, before)
    note(prefix, before, -1)
  else
    local raw = redis.call('HGET', prefix .. HOLDS, id)
    if raw then
      local held = cmsgpack.unpack(raw)
      redis.call('HDEL', prefix .. HOLDS, id)
      redis.call('ZREM', prefix .. LEASES, id)
      charge(prefix, cmsgpack.unpack(held[3]), true, held[2], bill, NOTHING)
    else
      charge(prefix, cmsgpack.unpack(argv[4]), false, nil, bill, NOTHING)
    end
  end
  note(prefix, bill, 1)
  tell(prefix, bill[8], failed(bill))
  bury(prefix, hour, id, '')
  if argv[6] ~= '' then
    redis.call('HSET', prefix .. 'used', argv[6], int(math.floor(now / MINUTE / 1000) * MINUTE))
  end
  return {1, now}
end

--[[ beat: ARGV prefix, lease (ms), number of records, their names, then for each call: id, hour, checks, bill.
Answers {now, {etag or false for each record}}. ]]
local function beat(_, argv)
  local prefix = argv[1]
  local now = milliseconds()
  local etags = {}
  local at = 4
  for _ = 1, tonumber(argv[3]) do
    local raw = redis.call('GET', argv[at])
    etags[#etags + 1] = raw and string.match(raw, '^[^\n]*') or false
    at = at + 1
  end
  while at + 3 <= #argv do
    local id, hour, checks, bill = argv[at], argv[at + 1], argv[at + 2], argv[at + 3]
    local tombstone = redis.call('HGET', prefix .. 'done:' .. hour, id)
    if tombstone ~= '' then
      local raw = redis.call('HGET', prefix .. HOLDS, id)
      local second = 0
      if raw then
        local held = cmsgpack.unpack(raw)
        second, checks = held[2], held[3]
      else
        -- Its lease ended while it lived on (the store stood still, or this worker did): it holds again what it held, and
        -- what was charged at the end of the lease is taken back.
        local list = cmsgpack.unpack(checks)
        if tombstone then
          local before = #tombstone > 1 and cmsgpack.unpack(string.sub(tombstone, 2)) or NOTHING
          charge(prefix, list, false, nil, NOTHING, before)
          note(prefix, before, -1)
          redis.call('HDEL', prefix .. 'done:' .. hour, id)
        end
        hold_budgets(prefix, list)
      end
      redis.call('HSET', prefix .. HOLDS, id, cmsgpack.pack({hour, second, checks, bill}))
      redis.call('ZADD', prefix .. LEASES, int(now + tonumber(argv[2])), id)
    end
    at = at + 4
  end
  return {now, etags}
end

--[[ sweep: ARGV prefix, at most. Answers {how many, now}. ]]
local function sweep(_, argv)
  local now = milliseconds()
  return {sweep_some(argv[1], now, tonumber(argv[2])), now}
end

--[[ put: KEYS record, sets...; ARGV expected etag ('' none, '*' any), new value, a member for each set. 1 when done, else 0. ]]
local function put(keys, argv)
  local raw = redis.call('GET', keys[1])
  local etag = raw and string.match(raw, '^[^\n]*') or ''
  if raw == argv[2] then
    return 1 -- a repetition
  end
  if argv[1] ~= '*' and argv[1] ~= etag then
    return 0
  end
  for at = 2, #keys do
    redis.call('SADD', keys[at], argv[at + 1])
  end
  redis.call('SET', keys[1], argv[2])
  return 1
end

--[[ audit: KEYS log; ARGV the last entry's hash as expected ('' for none), new entry, its hash. The log's last hash is kept in
its last entry. Answers {1} or {0, last hash}. ]]
local function audit(keys, argv)
  local last = redis.call('LINDEX', keys[1], -1)
  local readable, entry = pcall(cjson.decode, last or '')
  local head = readable and type(entry) == 'table' and type(entry.hash) == 'string' and entry.hash or ''
  if head ~= argv[1] then
    if redis.call('LPOS', keys[1], argv[2], 'RANK', -1, 'MAXLEN', 1000) then
      return {1} -- a repetition
    end
    return {0, head}
  end
  redis.call('RPUSH', keys[1], argv[2])
  return {1}
end

redis.register_function('reserve_@VERSION@', reserve)
redis.register_function{function_name = 'settle_@VERSION@', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'beat_@VERSION@', callback = beat, flags = {'allow-oom'}}
redis.register_function{function_name = 'sweep_@VERSION@', callback = sweep, flags = {'allow-oom'}}
redis.register_function{function_name = 'put_@VERSION@', callback = put, flags = {'allow-oom'}}
redis.register_function{function_name = 'audit_@VERSION@', callback = audit, flags = {'allow-oom'}}
