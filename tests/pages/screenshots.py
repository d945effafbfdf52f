"""Pictures of the pages, to look at and for the README: python -m tests.pages.screenshots [--readme]

Everything on them happened: the demo's teams send their calls through a router to simulated providers. With Debian's
`faketime` the router's and its store's clocks begin two days ago and go on hour by hour, with as many calls as a
working day has then; without it the charts have one hour. Pictures go to build/screenshots; --readme also renews those
in docs/images.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from PIL import Image
from playwright.sync_api import Browser

from tests.demo_traffic.house import House, opened
from tests.demo_traffic.scene import SHANGHAI
from tests.demo_traffic.traffic import Traffic
from tests.pages.browser import chromium, visit
from tests.simulators.router import ROOT

FOLDER: Final = ROOT / "build" / "screenshots"
README: Final = ROOT / "docs" / "images"
HOURS: Final = 47
"""So that yesterday can be compared with."""
CURVE: Final = (12, 6, 4, 3, 3, 6, 14, 40, 96, 160, 190, 172, 110, 140, 200, 214, 190, 156, 110, 84, 70, 52, 34, 20)
"""Calls by hour of the day."""
PLAY_SECONDS: Final = 20.0
PACE: Final = 2.5


class Picture(NamedTuple):
    name: str
    lang: str
    theme: str
    width: int
    height: int
    who: str = "admin"
    whole: bool = False


PICTURES: Final = (
    Picture("whole-en-light", "en", "light", 1440, 900, whole=True),
    Picture("whole-en-dark", "en", "dark", 1440, 900, whole=True),
    Picture("whole-zh-light", "zh", "light", 1440, 900, whole=True),
    Picture("whole-zh-dark", "zh", "dark", 1440, 900, whole=True),
    Picture("wall-en-dark", "en", "dark", 1920, 1080),
    Picture("wall-zh-light-4k", "zh", "light", 3840, 2160),
    Picture("tablet-en-light", "en", "light", 820, 1180, whole=True),
    Picture("phone-zh-dark", "zh", "dark", 360, 740, whole=True),
    Picture("holder-en-light", "en", "light", 1440, 900, who="chat-app", whole=True),
    Picture("sign-in-zh-light", "zh", "light", 1440, 900, who=""),
    # Last, when providers have recovered from what was done to them.
    Picture("overview-en-light", "en", "light", 1440, 1100),
    Picture("overview-zh-dark", "zh", "dark", 1440, 1100),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pages.screenshots", description=__doc__)
    parser.add_argument("--readme", action="store_true", help="also renew the pictures in docs/images")
    parser.add_argument("--no-history", action="store_true", help="the present hour alone, which is quicker")
    chosen = parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="switchyard-pictures-", ignore_cleanup_errors=True) as folder:
        clock = None if chosen.no_history else _clock(Path(folder))
        with opened(Path(folder), demo=False) as house:
            house.told("PATCH", "/admin/api/teams/default", {"timezone": SHANGHAI})
            traffic = Traffic(house, length=PLAY_SECONDS, pace=PACE, say=lambda _: None)
            if clock is not None:
                _history(traffic, clock)
            asyncio.run(traffic.play())
            with _trickling(traffic), chromium() as browser:
                for picture in PICTURES:
                    _take(browser, house, picture)
    if chosen.readme:
        README.mkdir(parents=True, exist_ok=True)
        for picture in PICTURES[-2:]:
            _pack(FOLDER / f"{picture.name}.png", README / f"{picture.name}.png")
    return 0


def _clock(folder: Path) -> Path | None:
    """Lets the processes that are started from now on read the time from a file; None without faketime."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        print("without faketime (apt-get install faketime) the charts have one hour", file=sys.stderr)
        return None
    clock = folder / "clock"
    clock.write_text(f"-{HOURS}h\n")
    os.environ |= {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return clock


def _history(traffic: Traffic, clock: Path) -> None:
    zone = ZoneInfo(SHANGHAI)
    for ago in range(HOURS, 0, -1):
        clock.write_text(f"-{ago}h\n")
        calls = CURVE[datetime.fromtimestamp(time.time() - ago * 3600, zone).hour]
        if ago > 24:
            calls = calls * 7 // 8
        asyncio.run(traffic.burst(calls, 20))
    clock.write_text("+0\n")
    os.environ.pop("LD_PRELOAD")


@contextlib.contextmanager
def _trickling(traffic: Traffic) -> Iterator[None]:
    """Calls go on while pictures are taken."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            asyncio.run(traffic.mix(2.0))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _take(browser: Browser, house: House, picture: Picture) -> None:
    size = {"width": picture.width, "height": picture.height}
    with visit(browser, house.router.url, lang=picture.lang, theme=picture.theme, viewport=size) as seen:
        secret = house.router.admin_token if picture.who == "admin" else house.credentials.get(picture.who)
        if secret is None:
            seen.page.goto(f"{seen.url}/admin")
        else:
            seen.sign_in(secret)
            seen.page.wait_for_selector('#live[data-state="live"]')
            seen.page.wait_for_timeout(2500)
        seen.page.screenshot(path=FOLDER / f"{picture.name}.png", full_page=picture.whole)
        for line in seen.blame():
            print(f"{picture.name}: {line}", file=sys.stderr)


def _pack(source: Path, target: Path) -> None:
    """With 256 colours: a third of the size, and nobody sees the difference on a page of few colours."""
    with Image.open(source) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
