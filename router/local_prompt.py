"""How the demo model is spoken to: its chat template, sampling and stops. It is a base model of 270M parameters,
never taught to chat.

What was tried (English and Chinese, two dozen facts and open questions each): bare question and answer wanders off
and loops; a few worked examples in the caller's language keep it on form, short, and in that language. The last
example weighs most, so it is the one about itself; otherwise it introduces itself as a student. It has no name there:
with one it made up another. The English answer starts on its own line because this vocabulary would put a space
before it. The repeat penalty looks at the examples too, and a larger one pushes the model away from the obvious
opening ("The", "Paris"); the DRY sampler is what ends loops. Low temperature: its second choices are seldom better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MODEL = "gemma-3-270m"

MOST_TOKENS = 512
"""Answer length where the caller gives none: it rambles at most, and this ends within half a minute on two slow
cores."""

SAMPLING: Mapping[str, float | int] = {
    # names of llama.cpp's parameters; they hold where the caller does not say
    "temp": 0.1,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.1,
    "penalty_repeat": 1.06,
    "penalty_last_n": 32,
    "dry_multiplier": 0.8,
    "dry_allowed_length": 4,
    "dry_penalty_last_n": 128,
}


@dataclass(frozen=True, slots=True)
class Form:
    """The frame of one language."""

    opening: str
    question: str
    answer: str
    """Ends where the answer begins."""
    examples: tuple[tuple[str, str], ...]

    def text(self) -> str:
        return "".join(f"{self.question}{ask}\n{self.answer}{reply}\n\n" for ask, reply in self.examples)


ENGLISH = Form(
    "Questions and good answers. Each answer is correct, clear and short.",
    "Question: ",
    "Answer:\n",
    (
        ("What is the capital of Spain?", "The capital of Spain is Madrid."),
        (
            "Why do leaves fall in autumn?",
            "In autumn the days are short and cold, so a tree can no longer feed its leaves. The leaves lose"
            " their green colour, dry out and fall to the ground.",
        ),
        (
            "Write a short poem about the moon.",
            "The moon is a lamp in the quiet night,\nShe covers the hills with silver light.\n"
            "The river below her sings and gleams,\nAnd carries the town to the land of dreams.",
        ),
        ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
        (
            "How do I make tea?",
            "Boil some water and pour it over the tea leaves. Wait for three minutes. Then take out the leaves and"
            " enjoy your tea.",
        ),
        (
            "What is a library?",
            "A library is a place that keeps many books. People can read the books there or borrow them and take them"
            " home.",
        ),
        (
            "Hello! Who are you and what can you do? Please introduce yourself.",
            "Hello! I am a small language model that runs on this computer. I can answer simple questions and write"
            " short texts. What would you like to know?",
        ),
    ),
)

CHINESE = Form(
    "下面是一些问题和正确、清楚、简短的回答。",
    "问：",
    "答：",
    (
        ("英国的首都是哪里？", "英国的首都是伦敦。"),
        (
            "为什么秋天树叶会落下来？",
            "秋天白天变短，天气变冷，树木不能再给叶子提供足够的养分和水分，所以叶子变黄、变干，最后落到地上。",
        ),
        ("写一首关于月亮的诗。", "明月挂在高高的天上，\n银色的光洒满小窗。\n微风轻轻吹过山岗，\n我在夜里想起故乡。"),
        ("3 + 5 等于多少？", "3 + 5 = 8。"),
        ("说一件有趣的事。", "小明问爸爸：“为什么鱼不会说话？”爸爸说：“因为它们一张嘴，水就流进去了。”"),
        ("《蒙娜丽莎》的作者是谁？", "《蒙娜丽莎》的作者是达·芬奇。"),
        ("怎么泡茶？", "先把水烧开，再把茶叶放进杯子里，倒入热水，等三分钟就可以喝了。"),
        ("什么是图书馆？", "图书馆是收藏书籍的地方。人们可以在那里看书，也可以把书借回家。"),
        ("请说出三种动物。", "马、老鹰和鲸鱼。"),
        (
            "你好，你是谁？你会做什么？请介绍一下自己。",
            "你好！我是一个在这台电脑上运行的小型语言模型。我可以回答简单的问题，也可以写短文。你想知道什么？",
        ),
    ),
)

STOP = tuple(f"{lines}{form.question.rstrip()}" for form in (ENGLISH, CHINESE) for lines in ("\n\n", "\n"))
"""Where the model goes on to ask itself the next question. The longer one first, so that no empty line is left
behind."""

_COMMON = "的一是不了人我在有他这中大来上个国到说们为你好请吗什么怎写诗，。？、：！"
"""A Chinese question of any length holds one of these; a template cannot look at code points."""


def template() -> str:
    """The Jinja chat template that llama.cpp renders. The last user turn decides the language of the frame."""
    return _TEMPLATE.format(
        common=f"[{', '.join(map(_quoted, _COMMON))}]",
        **{f"{key}_{part}": _quoted(value) for key, form in _FORMS.items() for part, value in _pieces(form).items()},
    )


_FORMS = {"en": ENGLISH, "zh": CHINESE}

_TEMPLATE = """\
{{%- set ns = namespace(zh=false, last='', system='') -%}}
{{%- for m in messages -%}}
  {{%- if m.role == 'user' -%}}{{%- set ns.last = m.content -%}}{{%- endif -%}}
  {{%- if m.role == 'system' or m.role == 'developer' -%}}
    {{%- set ns.system = ns.system + m.content + '\\n\\n' -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- for c in {common} -%}}{{%- if c in ns.last -%}}{{%- set ns.zh = true -%}}{{%- endif -%}}{{%- endfor -%}}
{{%- if ns.zh -%}}
  {{%- set opening = {zh_opening} -%}}
  {{%- set question = {zh_question} -%}}
  {{%- set answer = {zh_answer} -%}}
  {{%- set examples = {zh_examples} -%}}
{{%- else -%}}
  {{%- set opening = {en_opening} -%}}
  {{%- set question = {en_question} -%}}
  {{%- set answer = {en_answer} -%}}
  {{%- set examples = {en_examples} -%}}
{{%- endif -%}}
{{{{- opening + '\\n\\n' + examples + ns.system -}}}}
{{%- for m in messages -%}}
  {{%- if m.role == 'user' -%}}{{{{- question + m.content + '\\n' -}}}}{{%- endif -%}}
  {{%- if m.role == 'assistant' -%}}
    {{{{- answer + m.content -}}}}{{%- if not loop.last -%}}{{{{- '\\n\\n' -}}}}{{%- endif -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- answer -}}}}{{%- endif -%}}
"""


def _pieces(form: Form) -> dict[str, str]:
    return {"opening": form.opening, "question": form.question, "answer": form.answer, "examples": form.text()}


def _quoted(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
