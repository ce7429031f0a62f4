"""Is this chat template only a template? Its syntax tree is read, and what reaches for Python is named.

Engines render templates that come with models, some of them outside any sandbox. What is found here is refused whatever
the engine; that a template also stays within limits is seen by rendering it, in a process of its own.
Source: Jinja 3.1's sandbox; CVE-2024-34359 (llama-cpp-python) and the injections published since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundplane.errors import Refused

TEMPLATE_BYTES_MAX = 256 * 1024
_NESTED_MAX = 200

_DUNDER = re.compile(
    r"__(class|mro|bases?|subclasses|globals|init|builtins?|import|dict|getattribute|getattr|self|code|func|module"
    r"|loader|reduce|reduce_ex|call|getitem|new|closure|wrapped|spec|annotations|kwdefaults|defaults)__"
)
_ATTRIBUTES = {"mro", "gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame", "ag_code", "tb_frame", "f_globals",
               "f_builtins", "f_locals", "f_back", "func_globals", "im_func", "im_self", "popen", "system",
               "subclasses", "check_output"}  # fmt: skip
_NAMES = {"lipsum", "cycler", "joiner", "self", "request", "config", "url_for", "get_flashed_messages", "os", "sys",
          "subprocess", "open", "eval", "exec", "compile", "getattr", "importlib", "builtins"}  # fmt: skip
_WORKED_OUT = (nodes.Concat, nodes.Filter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template of a model, and the name it has there."""

    name: str
    source: str


class Generation(Extension):
    """`{% generation %}`: marks what the model says, for training. Renders what is inside it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of saying it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox templates are parsed and rendered in: with the tags that chat templates use, without files."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )


def judge_templates(path: str, templates: Iterable[Template]) -> Refused | None:
    """The first template that is more than one."""
    for template in templates:
        found = dangers(template.source)
        if found:
            return refusal(path, template.name, ", ".join(found[:3]))
    return None


def refusal(path: str, name: str, what: str) -> Refused:
    """The no for a template, with what was found in it."""
    return Refused(
        rule="template-injection",
        need="a chat template that only puts messages together",
        have=f"{path}: {name} {what}",
        hint="take the template of the base model, or write one without what is named here",
    )


def dangers(source: str) -> list[str]:
    """What the template reaches for, each in words; empty when it is only a template."""
    if len(source.encode(errors="replace")) > TEMPLATE_BYTES_MAX:
        return [f"is over {TEMPLATE_BYTES_MAX // 1024} KiB long"]
    try:
        tree = environment().parse(source)
        return list(dict.fromkeys(_walk(tree)))
    except TemplateSyntaxError as error:
        return [f"can't be parsed, so can't be vouched for: line {error.lineno}: {str(error.message)[:80]}"]
    except RecursionError:
        return ["nests too deep to be checked"]


_ADDRESS = re.compile(r"https?://[\w.-]+")
_ORDERS = re.compile(r"(?i)(?:ignore|disregard|forget) (?:all |any )?(?:the )?(?:previous|prior|above) instructions")
_WORDS = re.compile(r"[\w ,.'-]{3,}")
# Parts of a message that templates look for by name.
_PARTS = frozenset({"image", "image_url", "video", "audio", "text", "type", "content", "name", "role", "arguments",
                    "function", "parameters", "tool_calls", "tool_call_id", "thinking",
                    "reasoning_content"})  # fmt: skip


def remarks(templates: Iterable[Template]) -> list[str]:
    """What templates write or look for that is no message's frame: addresses, and words that they react to.

    Honest ones do it too, seldom; a template that answers to a secret word does nothing else that could be told.
    Source: "Inference-Time Backdoors via Hidden Instructions in LLM Chat Templates", 2026.
    """
    found: dict[str, None] = {}
    for template in templates:
        try:
            tree = environment().parse(template.source)
        except (TemplateSyntaxError, RecursionError):
            continue
        found |= dict.fromkeys(f"the words {words!r}" for words in _ORDERS.findall(template.source))
        found |= dict.fromkeys(f"the address {address}" for address in _ADDRESS.findall(template.source))
        for node in tree.find_all((nodes.Compare, nodes.Call)):
            word = _looked_for(node)
            if word and _WORDS.fullmatch(word) and word not in _PARTS:
                found[f"what follows the word {word[:40]!r}"] = None
    return list(found)


def _looked_for(node: nodes.Node) -> str:
    """The text that is looked for in another: `'word' in text`, `text.startswith('word')`."""
    if isinstance(node, nodes.Compare) and any(each.op in {"in", "notin"} for each in node.ops):
        return _text(node.expr) or ""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.args:
        return (_text(node.args[0]) or "") if node.node.attr in {"startswith", "endswith", "replace", "find"} else ""
    return ""


_REACHES = re.compile(
    r"__(?:class|mro|base|subclasses|globals|builtins|import)__|\b(?:cycler|lipsum|joiner)(?:\.|\[|\|attr)"
)
_EXPRESSION_MAX = 2000
_REACHES_MAX = 1000


def injection(text: str) -> str:
    """The end of a template, in text that need not be one, that reaches for Python; "" when there is none."""
    if "{{" not in text and "{%" not in text:
        return ""
    for count, found in enumerate(_REACHES.finditer(text)):
        before = text[max(0, found.start() - _EXPRESSION_MAX) : found.start()].rpartition("\n")[2]
        if max(before.rfind("{{"), before.rfind("{%")) > max(before.rfind("}}"), before.rfind("%}")):
            return found[0]
        if count > _REACHES_MAX:
            return f"{found[0]}, over {_REACHES_MAX:,} times"
    return ""


def _walk(tree: nodes.Template) -> Iterator[str]:
    stored = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    stored |= {node.name for node in tree.find_all(nodes.Macro)}
    made_up = _made_up_names(tree)
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _NESTED_MAX:
            raise RecursionError
        found = _danger(node, stored, made_up)
        if found:
            yield found
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


def _made_up_names(tree: nodes.Template) -> set[str]:
    """Names that are given a text which is put together: used as a subscript they hide what they reach for."""
    given: list[tuple[nodes.Node, nodes.Node]] = [(each.target, each.node) for each in tree.find_all(nodes.Assign)]
    given += [(each.target, each.iter) for each in tree.find_all(nodes.For)]
    for each in tree.find_all(nodes.With):
        given += zip(each.targets, each.values, strict=True)
    return {
        name.name
        for target, value in given
        if _puts_together(value)
        for name in (target, *target.find_all(nodes.Name))
        if isinstance(name, nodes.Name | nodes.NSRef)
    }


def _puts_together(value: nodes.Node) -> bool:
    """Whether the expression, or what it lists, is a text worked out by the template from texts of its own."""
    if isinstance(value, nodes.List | nodes.Tuple):
        return any(_puts_together(item) for item in value.items)
    if isinstance(value, nodes.CondExpr):
        return any(_puts_together(each) for each in (value.expr1, value.expr2) if each is not None)
    worked_out = isinstance(value, nodes.Concat | nodes.Add | nodes.Mod | nodes.Mul | nodes.Filter | nodes.Call)
    return worked_out and any("_" in text or "%" in text for text in _texts(value))


def _texts(value: nodes.Node) -> list[str]:
    found = [value] if isinstance(value, nodes.Const) else list(value.find_all(nodes.Const))
    return [each.value for each in found if isinstance(each.value, str)]


def _danger(node: nodes.Node, stored: set[str], made_up: set[str]) -> str:
    if isinstance(node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends):
        return "loads another template"
    if isinstance(node, nodes.Getattr | nodes.NSRef):
        return _attribute(node.attr)
    if isinstance(node, nodes.Getitem):
        hidden = _text(node.node) is not None and not isinstance(node.arg, nodes.Const | nodes.Slice | nodes.Neg)
        return _subscript(node.arg, made_up) or ("takes any attribute of a text" if hidden else "")
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr in _FORMATS:
        return "" if _text(node.node.node) is not None else "formats with a text that is not its own"
    if isinstance(node, nodes.Filter) and node.name == "attr":
        return "uses the filter attr, which reaches any attribute"
    if isinstance(node, nodes.Filter) and node.name in {"map", "selectattr", "rejectattr", "sort", "groupby", "sum"}:
        if node.name == "map" and _text(next(iter(node.args), node)) == "attr":
            return "uses the filter attr, which reaches any attribute"
        names = [*node.args[:1], *(pair.value for pair in node.kwargs if pair.key == "attribute")]
        return next((said for name in names if (said := _subscript(name, made_up))), "")
    if isinstance(node, nodes.Name) and node.ctx == "load" and (node.name in _NAMES or _DUNDER.search(node.name)):
        return "" if node.name in stored else f"uses {node.name}"
    text = _text(node)
    written = _DUNDER.search(text) if text is not None else None
    return f"writes {written[0]}" if written else ""


def _attribute(name: str) -> str:
    return f"reaches for {name}" if name.startswith("_") or name in _ATTRIBUTES else ""


_FORMATS = {"format", "format_map"}


def _subscript(argument: nodes.Node, made_up_names: set[str]) -> str:
    text = _text(argument)
    if text is not None:
        return next((found for part in text.split(".") if (found := _attribute(part))), "")
    kept = getattr(argument, "name", None) if isinstance(argument, nodes.Name) else None
    if isinstance(argument, nodes.Getattr) and isinstance(argument.node, nodes.Name):
        kept = argument.node.name
    if kept in made_up_names:
        return "reaches for a name that it puts together itself"
    made_up = isinstance(argument, _WORKED_OUT) or (isinstance(argument, nodes.Add | nodes.Mod) and _has_text(argument))
    return "reaches for a name that it puts together itself" if made_up else ""


def _has_text(node: nodes.Node) -> bool:
    return any(isinstance(item.value, str) for item in node.find_all(nodes.Const))


def _text(node: nodes.Node) -> str | None:
    """The text that the expression is, texts joined by + and ~ put together; None when it is not known here."""
    if isinstance(node, nodes.Const):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, nodes.TemplateData):
        return None
    parts: list[nodes.Expr] = []
    if isinstance(node, nodes.Add):
        parts = [node.left, node.right]
    elif isinstance(node, nodes.Concat):
        parts = list(node.nodes)
    texts = [_text(part) for part in parts]
    return "".join(text for text in texts if text is not None) if parts and None not in texts else None
