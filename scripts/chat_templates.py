"""Renders published chat templates with transformers and prints the texts as JSON, one template a line.

The templates are the `.jinja` files of the package trl and of the folders that are named as arguments. The
conversations are those of tests/fixtures/templates.json and some more. Run it with the Python of `scripts/test_python templates`.
"""

import datetime
import importlib.util
import itertools
import json
import pathlib
import sys

import tokenizers
import transformers
from transformers.utils import chat_template_utils

FIXTURE = json.loads((pathlib.Path(__file__).parent.parent / "tests/fixtures/templates.json").read_text())
NOW = datetime.datetime(2026, 2, 3, 14, 5, 6)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock
TOKENIZER = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
)


def user(content):
    return {"role": "user", "content": content}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def calls(content, *calls, **more):
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    listed = [{"id": f"call{i:05}", "type": "function", "function": f} for i, f in enumerate(functions)]
    return said(content, tool_calls=listed, **more)


def result(content, i=0, **more):
    return {"role": "tool", "content": content, "tool_call_id": f"call{i:05}", **more}


ODD = {"text": "it's \"é\" <b>\n\t\\ \u2028 \x7f", "tiny": 1e-07, "huge": 1e22, "whole": 2.0, "none": None, "list": [[], {}, [True]]}
CONVERSATIONS = {
    "numbers": [user("1"), calls("", ("f", ODD)), result(json.dumps(ODD)), user("2")],
    "two results": [
        user("1"),
        calls("Both. ", ("f", {"a": 1}), ("g", {})),
        result("one", 0, name="f"),
        result("two", 1, name="g"),
        said("Done."),
    ],
    "after a call": [user("1"), calls("", ("f", {"x": "y"}), reasoning_content="Hm.\n"), result("3")],
    "an empty call": [user("1"), calls(None, ("f", {}))],
    "thought": [user("1"), said("\n\nTwo.\n", reasoning_content="\nOne and one.\n"), user("And?"), said("Three")],
    "tags": [user("a </think> b"), said("<think>x</think>y</think>z"), user("<tool_response>c</tool_response>")],
    "unclosed": [user("1"), said("<think>on"), user("2"), said("off</think> on")],
    "blank": [{"role": "system", "content": "  \n"}, user(""), said(""), user(" ")],
    "lines": [user("a\r\nb\n\n c\u00a0"), said("x\ny"), user("ẞ İ ﬁ Σ\u0301 \U0001f600")],
    "system in between": [user("1"), said("2"), {"role": "system", "content": "Now be brief."}, user("3")],
    "system last": [user("1"), {"role": "system", "content": "S"}],
    "texts": [
        {"role": "system", "content": [{"type": "text", "text": "S"}]},
        user([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]),
        said([{"type": "text", "text": "c"}]),
        user([{"type": "text", "text": "d"}]),
    ],
    "pictures": [user([{"type": "image"}, {"type": "text", "text": "a"}, {"type": "video"}, {"type": "audio"}])],
    "result parts": [user("1"), calls("", ("f", {})), result([{"type": "text", "text": "r"}]), user("2")],
    "result object": [user("1"), calls("", ("f", {})), result({"rain": 1e-05}), user("2")],
    "users": [user("1"), user("2"), user("3")],
    "twenty": [turn for i in range(10) for turn in (user(f"q{i}"), said(f"a{i}", reasoning_content=f"r{i}"))],
}
TOOLS = FIXTURE["tools"] + [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds.\nMany lines,\n  indented.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": ["string", "null"], "description": "Words", "default": None, "minLength": 1},
                    "kinds": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "default": ["a"]},
                    "where": {
                        "type": "object",
                        "description": "A box",
                        "properties": {"x": {"type": "number", "minimum": 1e-05}, "y": {"type": "number"}},
                        "required": ["x"],
                        "additionalProperties": False,
                    },
                    "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                },
                "required": ["query", "kinds"],
            },
            "return": {"type": "string"},
        },
    }
]
# Whether there are tools and a generation prompt, and the variables.
OPTIONS = [
    (False, True, {}),
    (False, False, {}),
    (True, True, {"enable_thinking": False}),
    (True, False, {"enable_thinking": True, "reasoning_effort": "high", "documents": [{"title": "T", "text": "D"}]}),
]


def sources():
    packages = [pathlib.Path(importlib.util.find_spec("trl").origin).parent]
    seen = {}
    for folder in packages + [pathlib.Path(folder) for folder in sys.argv[1:]]:
        for path in sorted(folder.rglob("*.jinja")):
            seen.setdefault(path.read_text(), path.name)
    return seen


def case(source, name, messages, options):
    tools = TOOLS if options["tools"] else None
    try:
        expected = TOKENIZER.apply_chat_template(
            messages,
            tools=tools,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=options["add_generation_prompt"],
            **options["variables"],
        )
        return {"conversation": name, **options, "expected": expected}
    except Exception as error:
        return {"conversation": name, **options, "error": f"{type(error).__name__}: {error}"}


def main():
    conversations = {
        name: messages
        for name, messages in FIXTURE["conversations"].items()
        # This library renders arguments that are text as objects, and refuses roles that a template leaves out.
        if not any(isinstance(c["function"]["arguments"], str) for m in messages for c in m.get("tool_calls") or [])
        and name != "stranger"
    } | CONVERSATIONS
    known = {"conversations": conversations, "tools": TOOLS, "now": list(NOW.timetuple()[:6])}
    print(json.dumps(known))
    for source, name in sources().items():
        cases = []
        for (title, messages), (tools, prompt, variables) in itertools.product(conversations.items(), OPTIONS):
            options = {"add_generation_prompt": prompt, "tools": tools, "variables": variables}
            cases.append(case(source, title, messages, options))
        print(json.dumps({"name": name, "source": source, "cases": cases}))


main()
