"""What a message names: models, methods, precision, people, places of data, rules to keep, who may reach it."""
# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import re
from collections.abc import Iterator

from groundplane.domain.intake.lexicon import Lexicon, squeezed
from groundplane.domain.intake.numbers import COUNT, Found, number, rx

_NO_NAMES = """
    tbd unknown none me us we you i nobody someone somebody the a an is not to be unclear open anyone who
    whoever my our it this that and or for same pending missing n/a na ? team your their his her its decided
    required needed later asap of in
"""
_NO_TEAMS = """
    whole entire other same infra infrastructure platform ops your ops' right new my our wider
"""


def names(low: str, plain: str, lexicon: Lexicon) -> Iterator[Found]:
    """Every named thing. `plain` is `low` with its capitals: names of people keep theirs, `PHI` needs them."""
    yield from _models(low, lexicon)
    yield from _listed(low)
    yield from _people(low, plain)
    yield from _places(low, plain)
    yield from _checkpoint_times(low)
    yield from _reach(low)
    yield from _rules(low, plain)


# ---------------------------------------------------------------- models

_HOSTED = r"gpt-?4o(?:-mini)?|gpt-?4(?:\.1)?|gpt-?5(?:-mini)?|gpt-?3\.5(?:-turbo)?|claude(?:[ -]?\d(?:\.\d)?)?(?:[ -](?:sonnet|opus|haiku))?|gemini(?:[ -]?\d(?:\.\d)?)?(?:[ -](?:pro|flash))?"
_OPEN = (
    r"deepseek-(?:v3(?:\.\d)?|r1(?:-distill)?)|deepseek(?: ?v3(?:\.\d)?| ?r1)?|code ?llama|llama|mixtral|mistral(?:[ -](?:large|small|nemo|medium))?|qwen|qwq"
    r"|gemma|phi(?=[ -]?\d)|falcon(?=[ -]?\d)|gpt-oss|gpt-?2\b|bert|roberta|distilbert|whisper|stable diffusion|sdxl|flux\.1|starcoder"
    r"|kimi[ -]?k2(?:\.\d)?|glm(?=[ -]?\d)|minimax[ -]m\d(?:\.\d)?|nemotron|olmo|granite(?=[ -]?\d)|resnet|yolo|t5|vit\b|clip\b|command[ -]r|bloom(?=[ -]?\d)|dbrx"
)
_MODEL = re.compile(
    rf"(?<![\w/-])(?:(?P<hosted>{_HOSTED})(?![\w])|(?P<open>{_OPEN})(?:[ -]?v?(?P<version>\d{{1,2}}(?:\.\d{{1,2}})?)(?!\d| ?(?:b\b|bn|billion|x\d)|[\w.]*\d* ?b\b))?"
    r"(?P<tail>(?:[ -](?:scout|maverick|mini|coder|large|small|medium|nemo|base|distill-llama|distill))?)"
    r"(?:[ -]?(?P<size>\d{1,3}(?:x\d{1,3})?(?:\.\d{1,2})?)[ -]?b(?:illion)?\b)?(?:[ -](?:instruct|chat|it)\b)?)"
)
_PLAIN_WORDS = {"clip", "vit", "t5", "flux.1", "bert"}


def _models(low: str, lexicon: Lexicon) -> Iterator[Found]:
    for match in _MODEL.finditer(low):
        if match["hosted"]:
            yield Found(
                "model",
                match["hosted"].replace(" ", "-"),
                match.start(),
                match.end(),
                "",
                "a hosted model: its weights are not ours to run",
            )
            continue
        family = match["open"].strip().replace(" ", "" if match["open"].startswith("code") else "-")
        parts = [
            family,
            match["version"] or "",
            (match["tail"] or "").strip(" -"),
            f"{match['size']}b" if match["size"] else "",
        ]
        if (
            match["open"] in _PLAIN_WORDS
            and not (match["size"] or match["version"])
            and not re.search(r"model|train|tun|infer|serve|embed", low[max(0, match.start() - 40) : match.end() + 40])
        ):
            continue
        written = "-".join(part for part in parts if part)
        yield _model(written, match, lexicon)
    yield from _own_models(low)


def _model(written: str, match: re.Match[str], lexicon: Lexicon) -> Found:
    if not lexicon.model_ids:
        return Found("model", written, match.start(), match.end())
    if written in lexicon.model_ids:
        return Found("model", lexicon.model_ids[written].id, match.start(), match.end())
    plain = squeezed(written)
    same = [model.id for name, model in lexicon.model_ids.items() if squeezed(name) == plain]
    if same:
        return Found("model", same[0], match.start(), match.end())
    like = [model.id for name, model in lexicon.model_ids.items() if _is_like(plain, squeezed(name))]
    note = f"could be {', '.join(like[:4])}" if like else "not in the catalogue"
    return Found("model", written, match.start(), match.end(), "", note)


def _is_like(asked: str, known: str) -> bool:
    """`mistral7b` is like `mistral7bv0.3`, `llama70b` like `llama3.170b`: the same letters and the same size."""
    family, size = re.match(r"[a-z]*", asked), re.search(r"\d+b$", asked)
    return known.startswith(asked) or bool(
        family and size and known.startswith(family[0]) and re.search(rf"(?<!\d{{2}}){size[0]}", known)
    )


_OWN = rx(
    r"\b(?:registered |our )?model~[:=]~([a-z0-9][a-z0-9._-]{1,60}(?:@\d{1,4})?)|(?<![\w.@/-])([a-z0-9][a-z0-9._-]{1,60}@\d{1,4})(?![\w.])"
)


def _own_models(low: str) -> Iterator[Found]:
    for match in _OWN.finditer(low):
        group = 1 if match[1] else 2
        if not _MODEL.match(match[group]):
            yield Found(
                "model",
                match[group].rstrip("."),
                match.start(group),
                match.start(group) + len(match[group].rstrip(".")),
            )


# ---------------------------------------------------------------- words that stand for a value

_TABLE: tuple[tuple[str, str, str], ...] = (
    ("method", "qlora", r"\bq-?lora\b"),
    ("method", "lora", r"\blora\b|\bpeft\b|\blow-rank\b"),
    ("method", "full", r"\bfull[ -]?(?:parameter )?fine[ -]?tun(?:e|ing)\b|\ball (?:the )?(?:weights|parameters)\b"),
    ("method", "dpo", r"\bdpo\b"),
    ("method", "rlhf", r"\brlhf\b|\bgrpo\b|\bppo\b(?=[^.\n]{0,60}\b(?:llm|reward model|preference|human feedback)\b)"),
    ("method", "pretraining", r"\bpre-?train(?:ing)?\b(?! ed)|\bfrom scratch\b"),
    ("workload", "fine-tuning", r"\bfine[ -]?tun(?:e|es|ing)\b|\bfine[ -]?tuned\b(?! (?:model|llm|version|weights|checkpoint|adapter))|\bsft\b|\bq?-?lora\b|\binstruction tuning\b"),
    ("workload", "training", r"(?<![\w-])(?:re-?)?train(?:s|ing)?\b(?!-| (?:data|set|dataset|images|session|course|material|the new|new (?:hires|joiners)))|\bpre-?train(?:ing)?\b|\bhyper-?parameter (?:sweep|search)\b"),
    ("workload", "batch-inference", r"\bbatch[ -](?:inference|scoring|prediction|predictions|transcri\w+|embedding)\b|\boffline inference\b|\bscore (?:all|the whole|every)\b"),
    ("workload", "serving", r"\bserv(?:e|ing)\b|\bhost (?:a |the |our )?(?:model|llm|llama|mistral)\b|\breal-?time inference\b|\bonline inference\b"),
    ("precision", "fp32", r"\bfp32\b|\bfloat32\b|\bfull precision\b"),
    ("precision", "tf32", r"\btf32\b"),
    ("precision", "bf16", r"\bbf16\b|\bbfloat16\b"),
    ("precision", "fp16", r"\bfp16\b|\bfloat16\b|\bhalf[ -]precision\b"),
    ("precision", "fp8", r"\bfp8\b"),
    ("precision", "int8", r"\bint8\b|\b8[ -]bits?\b(?! adam)"),
    ("precision", "int4", r"\bint4\b|\b4[ -]bits?\b|\bnf4\b|\bawq\b|\bgptq\b"),
    ("optimizer", "adam-8bit", r"\b(?:8[ -]?bit|paged) adamw?\b|\badamw?[ -]?8[ -]?bit\b"),
    ("optimizer", "adam", r"(?<!bit )(?<!bit-)(?<!8bit )(?<!paged )\badamw?\b(?![ -]?8)(?=[ ,.;)]|$)"),
    ("optimizer", "adafactor", r"\badafactor\b"),
    ("optimizer", "sgd", r"\bsgd\b"),
    ("framework", "pytorch", r"\bpytorch\b|\btorch\b(?!serve)"),
    ("framework", "jax", r"\bjax\b"),
    ("framework", "tensorflow", r"\btensorflow\b"),
    ("framework", "deepspeed", r"\bdeepspeed\b"),
    ("framework", "vllm", r"\bvllm\b"),
    ("framework", "triton", r"\btriton\b"),
    ("framework", "ray", r"\bray (?:cluster|train|serve|job)\b"),
    ("environment", "production", r"\bproduction\b|\bprod\b|\bgo(?:es|ing)?[ -]live\b"),
    ("environment", "staging", r"\bstaging\b|\bpre-?prod(?:uction)?\b"),
    ("environment", "development", r"\bdev (?:environment|cluster|box|team's)\b|\bdev\b|\bdevelopment environment\b|\bsandbox\b"),
    ("environment", "pilot", r"\bpoc\b|\bproof of concept\b|\bpilot\b|\bdemo\b|\bhackathon\b"),
    ("spot", "yes", r"\bspot (?:instances?|vms?|nodes?|capacity|pricing|is (?:ok|fine))\b|\bspot\b(?= (?:would|works|ok))|\bpreemptible\b|\blow[ -]priority vms?\b"),
    ("checkpoint", "no", r"\b(?:no|without|don'?t (?:have|do|save|use)(?: any)?|doesn'?t (?:save|write)(?: any)?|not) checkpoint(?:s|ing)?\b|\bcheckpoint(?:s|ing)? (?:is |are )?(?:off|disabled|not )"),
    ("checkpoint", "yes", r"(?<!no )(?<!without )(?<!not )(?<!any )(?<!have )(?<!save )(?<!t do )\bcheckpoint(?:s|ing|ed)?\b(?! (?:is |are )?(?:off|disabled|not ))"),
    ("shell_access", "everyone", r"\bssh (?:access )?for (?:everyone|everybody|all|the (?:whole|entire) team|all of us|the team)\b|\b(?:everyone|everybody|all of us|the (?:whole|entire) team|all \d+ of us)\b[^.\n]{0,40}\bssh\b|\broot (?:access )?for (?:everyone|all)\b|\bshared (?:root|ssh|admin)\b"),
    ("shell_access", "ssh", r"\bssh(?: access| into| in| key| keys)?\b"),
    ("scheduler", "slurm", r"\bslurm\b|\bsbatch\b"),
    ("scheduler", "kubernetes", r"\bkubernetes\b|\bk8s\b|\baks\b|\beks\b|\bgke\b"),
    ("runs_at_weekend", "yes", r"\b(?:over|through|during|across) the weekend\b|\ball weekend\b|\bweekends? too\b"),
    ("runs_always", "yes", r"\b24/7\b|\b24x7\b|\baround the clock\b|\balways[ -]on\b|\bpermanent(?:ly)?\b|\bindefinitely\b|\bopen[ -]ended\b|\bno end date\b|\bforever\b"),
    ("period", "last month", r"\blast month(?:'s)?\b"),
    ("period", "this month", r"\b(?:this month|month to date|so far this month)(?:'s)?\b"),
    ("period", "last week", r"\blast week(?:'s)?\b"),
    ("period", "this week", r"\bspen[dt]\b[^.\n]{0,40}\bthis week\b"),
    ("period", "last quarter", r"\blast quarter(?:'s)?\b"),
    ("period", "last year", r"\blast year(?:'s)?\b"),
    ("period", "yesterday", r"\byesterday(?:'s)?\b"),
    ("group_by", "project", r"\b(?:per|by|each|every) (?:team|project)s?\b"),
    ("group_by", "model", r"\b(?:per|by|each) model\b"),
    ("group_by", "key", r"\b(?:per|by|each) (?:api )?key\b"),
    ("group_by", "owner", r"\b(?:per|by|each) (?:owner|user|person)\b"),
    ("error", "out of memory", r"\b(?:cuda )?out of memory\b|\boomkilled\b|\bexit(?:ed with)?(?: code| status)? 137\b|\boom\b"),
    ("error", "429 too many requests", r"\b429s?\b|\btoo many requests\b|\brate[ -]limited\b"),
    ("error", "403 forbidden", r"\b403\b|\bpermission denied\b|\baccess denied\b"),
    ("error", "pending", r"\b(?:pods?|jobs?|runs?) (?:\w+ ){0,4}(?:pending|stuck)\b"),
    ("error", "no CUDA device", r"\bno cuda(?:-capable)? device\w*"),
    ("error", "NCCL error", r"\bnccl (?:error|timeout|watchdog)\b"),
    ("error", "5xx from the server", r"\b(?:give|gives|gave|return|returns|returned|returning|get|gets|getting|got|with|http|status|code|error|errors|answers?) (?:a |an |us |me |only |http |code |status )*50[0234]s?\b|\b50[234]s\b"),
    ("error", "Xid", r"\bxid[ :=]*\d{1,3}\b"),
    ("error", "timeout", r"\btime[sd]? ?-?out\b|\btiming out\b"),
    ("error", "disk full", r"\bno space left\b|\bdisk(?: is)? full\b"),
    ("metrics", "tokens per minute", r"\btpm\b|\btokens? (?:usage|consumption|per min(?:ute)?|rate|counts?)\b|\btok(?:en)?s? ?/ ?min(?:ute)?\b"),
    ("metrics", "requests per minute", r"\brpm\b|\brequests? (?:per minute|rate|counts?)\b|\btraffic\b"),
    ("metrics", "latency", r"\blatenc(?:y|ies)\b|\bttft\b|\bresponse times?\b|\bp9[59]\b"),
    ("metrics", "GPU utilisation", r"\bgpu[ -](?:usage|utili[sz]ation|util|metrics|memory|load|monitoring|health)\b|\bdcgm\b"),
    ("metrics", "cost", r"\bcosts?\b|\bspend(?:ing)?\b"),
    ("metrics", "errors", r"\berror rates?\b|\b(?:429|5xx|500)s?\b|\berrors\b"),
    ("metrics", "drift", r"\bdrift\b|\bquality\b|\baccuracy\b"),
    ("action", "stop", r"\b(?:tear|shut|spin|scale|bring)(?:ing)? (?:\w+ ){0,3}down\b|\bteardown\b|\bshutdown\b|\bdecommission(?:ed|ing)?\b|\bdelete\b|\bderovision\w*|\bdeprovision\w*|\bterminate\b|\bswitch off\b|\bturn off\b|\bget rid of\b|\brelease the (?:gpus?|vms?|nodes?|machines?)\b"),
    ("action", "extend", r"\bextend(?:ed|ing)?\b|\bextension\b|\bprolong\b|\bkeep (?:\w+ ){1,5}(?:running|alive|until|for (?:another|\w+ more))\b|\bfor (?:another|\w+ more) (?:\w+ )?(?:days?|weeks?|months?)\b|\b(?:another|\w+ more) weeks?\b"),
)  # fmt: skip
_WORDS = tuple((name, value, re.compile(pattern)) for name, value, pattern in _TABLE)


def _listed(low: str) -> Iterator[Found]:
    for name, value, pattern in _WORDS:
        for match in pattern.finditer(low):
            if match.end() > match.start():
                yield Found(name, value, match.start(), match.end())


# ---------------------------------------------------------------- people

_NAME = r"[a-z0-9][\w.@+'-]{0,60}"
_NOBODY = frozenset(_NO_NAMES.split())
_PEOPLE = (
    ("owner", rx(rf"\bowner \(({_NAME})\)")),
    ("owner", rx(rf"\bowner(?:ship)?(?:~(?:is|will be|would be|:|=|-))+ ?({_NAME})")),
    ("owner", rx(rf"\b(?:owned by|on the hook is|point of contact is|poc is|contact~:|responsible~:|responsible is|ask for) ?({_NAME})")),
    ("owner", rx(rf"\b({_NAME}) (?:is the owner|owns (?:it|this|the)|will own|is responsible|is on the hook|will be the owner)")),
    ("cost_center", rx(r"\bcost[ -]?cent(?:er|re)(?:~(?:is|code|number|:|=|#))* ?([a-z0-9][\w/.-]{1,40})")),
    ("cost_center", rx(r"\b(?:charge|bill|book|charged|billed|booked)(?: it| this| that| everything)? (?:to|on|against) (?:cost[ -]?cent(?:er|re) |the |our )?([a-z0-9][\w/-]{1,40})")),
    ("cost_center", rx(r"\b(cc[- ]?\d{2,8})\b")),
    ("people", rx(rf"\b(?:new (?:joiner|hire|colleague|starter|intern|team member)s?|onboard|invite|add|account for|access for|permissions for|grant) ({_NAME}(?:(?:, | and |, and ){_NAME}){{0,9}})")),
    ("project", rx(r"\bproject(?: (?:is|name|called|named))?~[:=]~([a-z0-9][\w-]{1,60})|\bproject (?:is |called |named )([a-z0-9][\w-]{1,60})|\b(?:in|under|for) (?:the )?project ([a-z0-9][\w-]{1,60})")),
    ("team", rx(r"\bteam~[:=]~([a-z0-9][\w&-]{0,40})|\bfor (?:the )?([a-z][\w&/-]{1,30}(?: [a-z][\w&/-]{1,30})?) team\b|\b(?:the|our) ([a-z][\w&/-]{1,30}) team\b")),
)  # fmt: skip
_TEAM_OF_NOBODY = frozenset(_NO_TEAMS.split())


def _people(low: str, plain: str) -> Iterator[Found]:
    for name, pattern in _PEOPLE:
        for match in pattern.finditer(low):
            group = next(number for number in range(1, pattern.groups + 1) if match[number])
            start, end = match.span(group)
            value = plain[start:end].rstrip(".'-:,")
            if (
                not value
                or value.lower() in _NOBODY
                or (name == "team" and value.lower().split()[0] in _TEAM_OF_NOBODY)
            ):
                continue
            if name == "people":
                names_of = [word for word in re.split(r", and |, | and ", value) if word[:1].isupper() or "@" in word]
                value = ", ".join(names_of)
                if not value:
                    continue
                yield Found(name, value, match.start(), end)
                continue
            if name == "cost_center" and match.re.pattern.startswith(r"\b(?:charge") and not re.search(r"\d|-", value):
                continue  # "bill it to them" names no cost centre.
            yield Found(name, value, match.start(), start + len(value))


# ---------------------------------------------------------------- places

_LOCATION = re.compile(
    r"(?<![\w])((?:s3|gs|gcs|abfss?|wasbs?|az|hf|nfs|adl)://[\w.@:/+=-]{2,200}|hf\.co/[\w./-]{2,100}|/(?:mnt|data|datasets|nfs|share|lustre|gpfs|scratch)/[\w./-]{0,150})"
)
_ADDRESS = re.compile(
    r"(?<![\w@/])(https?://[\w.:\[\]-]{2,200}(?:/[\w./%?=&#-]{0,200})?|\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?:/\d{1,2}|:\d{1,5})?)(?![\w])"
)
_STORE = re.compile(
    r"\b(blob storage|azure blob|azure files|(?:an? |our |the )?s3 bucket|gcs bucket|nfs share|file share|smb share|lustre|sharepoint|onedrive|google drive|dropbox|nas|usb drives?|snowflake|bigquery|databricks)\b"
)


_CHECKPOINT_NEAR = re.compile(r"checkpoint\w*[^.;\n]{0,24}$")
_OBJECT = re.compile(r"(?<![\w/.-])(?:vm|run|node|gpu|job|host|req)-[a-z0-9][\w-]{1,60}\b")


_EVERY = rx(rf"checkpoint\w*[^.;\n]{{0,40}}?\bevery~({COUNT}|hour)~-?(minutes?|mins?|hours?|hrs?|h)?\b")


def _checkpoint_times(low: str) -> Iterator[Found]:
    for match in _EVERY.finditer(low):
        hours = match[1] == "hour" or (match[2] or "").startswith("h")
        if match[1] != "hour" and not match[2]:
            continue  # Every 500 steps is no time.
        seconds = int((1 if match[1] == "hour" else number(match[1])) * (3600 if hours else 60))
        if seconds:
            yield Found("checkpoint_every", seconds, match.start(), match.end(), "s")


def _places(low: str, plain: str) -> Iterator[Found]:
    for match in _OBJECT.finditer(low):
        if any(character.isdigit() for character in match[0]):
            yield Found("object", plain[match.start() : match.end()], match.start(), match.end())
    for match in _LOCATION.finditer(low):
        end = match.start() + len(match[0].rstrip(".,"))
        to_checkpoints = _CHECKPOINT_NEAR.search(low, max(0, match.start() - 36), match.start())
        yield Found(
            "checkpoint_dir" if to_checkpoints else "data_location", plain[match.start() : end], match.start(), end
        )
    for match in _STORE.finditer(low):
        yield Found("data_location", match[1], match.start(), match.end(), "", "which one exactly is not said")
    for match in _ADDRESS.finditer(low):
        if (
            not all(int(part) < 256 for part in re.findall(r"\d+", match[0].split("/")[0].split(":")[0]))
            and match[0][0].isdigit()
        ):
            continue
        end = match.start() + len(match[0].rstrip(".,"))
        yield Found("address", plain[match.start() : end], match.start(), end)


# ---------------------------------------------------------------- who may reach it, and what rules hold

_PRIVATE = re.compile(
    r"\b(?:not|n't|never|no|nothing|isn't|without) (?:be |to be |a |an |any |have |is |go )?(?:public(?:ly)?(?: ip| address| access| endpoint| internet)?|internet[ -]facing|exposed)\b|\bprivate(?:ly)?\b(?! (?:data|repo|repository|dataset|company|key|keys|beta|note|sector|information|customer))|\binternal(?:ly)?[ -](?:only|endpoint|api|use|access|service|network)\b|\bonly internal(?:ly)?\b|\b(?:behind|inside|within|over) (?:the |our )?(?:vpn|vpc|vnet|firewall|private network)\b"
)
_PUBLIC = re.compile(
    r"\bpublic(?:ly)?\b(?! (?:cloud|clouds|data|dataset|datasets|holiday|sector|s3|bucket|key|repo|model|benchmark|transport))|\binternet[ -]facing\b|\b(?:open|exposed|reachable|accessible|available) (?:to|from|on|over) the (?:public )?(?:internet|outside|world|whole world)\b|\bexternal(?:ly)? (?:endpoint|api|access|accessible|users|customers|reachable)\b|\bopen (?:it |them |this |that )?(?:up )?to (?:the )?(?:public |whole )?internet\b|\bfrom anywhere\b|\b0\.0\.0\.0/0\b"
)
_NO_AUTH = re.compile(
    r"(?:\b(?:no|without|skip|disable|drop)|\bw/o)(?: any| the)? (?:auth\w*|login|log-in|password|api keys?|keys?|token auth|credentials)\b|\bunauthenticated\b|\banonymous(?:ly)?\b|\bauth(?:entication)? (?:is )?(?:off|disabled|not needed)\b"
)
_AUTH = re.compile(
    r"(?<!no )(?<!without )(?<!any )\b(?:api keys?|sso|oauth2?|oidc|mtls|entra id|saml|jwt|with auth\w*|authenticated)\b"
)


def _is_asked(low: str, match: re.Match[str]) -> bool:
    """Whether the word is all of a line that asks: `private?` in a chat states nothing."""
    begins = low.rfind("\n", 0, match.start()) + 1
    return re.match(r" ?\?", low[match.end() :]) is not None and not low[begins : match.start()].strip(" -*")


def _reach(low: str) -> Iterator[Found]:
    private = [match for match in _PRIVATE.finditer(low) if not _is_asked(low, match)]
    for match in private:
        yield Found("visibility", "private", match.start(), match.end())
    inside = [match.span() for match in private]
    at = 0
    for match in _PUBLIC.finditer(low):
        while at < len(inside) and inside[at][1] <= match.start():
            at += 1
        if at == len(inside) or match.end() <= inside[at][0]:
            yield Found("visibility", "public", match.start(), match.end())
    for match in _NO_AUTH.finditer(low):
        yield Found("auth", "none", match.start(), match.end())
    for match in _AUTH.finditer(low):
        yield Found("auth", match[0], match.start(), match.end())


_RULES = (
    ("pii", r"(?<!\bno )(?<!\bnot )(?<!\bany )(?<!\bwithout )\bpii\b|(?<!\bno )(?<!\bwithout )\bpersonal(?:ly identifiable)? (?:data|information)\b|\bcustomer data\b|\bgdpr\b"),
    ("health", r"\bhipaa\b|\bpatient (?:data|records?|images?|notes?)\b|\bmedical records?\b|\bprotected health\b"),
    ("payment", r"\bpci(?:[ -]dss)?\b(?!e)|\bcard ?holder\b"),
    ("eu-residency", r"\b(?:stay|remain|keep|kept|stored?|hosted?|processed|only)\b[^.\n]{0,30}\b(?:in|inside|within) (?:the )?(?:eu|europe|eea|germany|france)\b|\beu (?:data|residency|only|region|regions|customers' data)\b|\bdata residency\b"),
    ("soc2", r"\bsoc ?2\b"),
    ("iso27001", r"\biso ?27001\b"),
    ("fedramp", r"\bfedramp\b"),
    ("export-control", r"\bitar\b|\bexport[ -]controlled\b"),
    ("confidential", r"\bconfidential\b|\bhr (?:documents|data|files|records)\b|\bsalar(?:y|ies)\b|\btrade secrets?\b|\bunder nda\b"),
)  # fmt: skip
_RULE = tuple((value, re.compile(pattern)) for value, pattern in _RULES)
_PHI = re.compile(r"\bPHI\b(?![ -]?\d)")


def _rules(low: str, plain: str) -> Iterator[Found]:
    for value, pattern in _RULE:
        for match in pattern.finditer(low):
            yield Found("compliance", value, match.start(), match.end())
    for match in _PHI.finditer(plain):
        yield Found("compliance", "health", match.start(), match.end(), "", "PHI read as protected health information")
