"""Which piece of a message asks for what: sentences are cut where another kind of work begins, pieces become items.

Scores are small and additive: one word that names the work (`endpoint`, `monitoring`) is enough, hardware alone is
capacity unless it stands behind "on" or "with".
"""
# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from groundplane.domain.intake import ItemKind
from groundplane.domain.intake.text import Sentence

K = ItemKind
_ENOUGH = 2

_CUES: tuple[tuple[ItemKind, int, str], ...] = (
    (K.INCIDENT, 6, r"\b(?:keeps?|kept) (?:on )?(?:dying|failing|crashing|hanging|restarting|getting (?:killed|evicted))\b"),
    (K.INCIDENT, 6, r"out of memory|\btried to allocate\b|\binsufficient nvidia\.com|\bnodes are available\b|\bno space left\b|\boom(?:killed|-?kill\w*)?\b|\bcuda error|exit(?:ed with)?(?: code| status)? (?:137|139|1)\b|\bsegfault|\bxid \d+|\bnccl (?:error|timeout|watchdog)|\bno cuda(?:-capable)? device|\bcrash ?loop\w*"),
    (K.INCIDENT, 6, r"\b(?:pods?|jobs?|runs?|vms?|workloads?) (?:\w+ ){0,4}(?:pending|stuck|hang(?:s|ing)?|hung|frozen|evicted|failing|fails?|failed|crash\w*|died|dies|dead)\b|\b(?:stuck|hanging) (?:in|at|on)\b|\bpods? pending\b"),
    (K.INCIDENT, 6, r"\b(?:429s?|500s|502s?|503s?|504s?)\b(?! (?:gb|images|gpus?|rows|users))|\brate[ -]limited\b|\bthrottl\w+|\btoo many requests\b|\btime[sd]? ?-?out\b|\btiming out\b|\bconnection refused\b|\bpermission denied\b|\b403\b|\bgateway timeout\b"),
    (K.INCIDENT, 6, r"\b(?:is|are|went|got|gone|keeps?|has been|were|was) (?:\w+ ){0,2}(?:down|broken|failing|crashing|unreachable|unresponsive|slow|very slow|hanging)\b|\bdoes(?:n't| not) (?:work|start|respond|load|come up|boot)\b|\bnot (?:working|responding|starting)\b|\bwhy (?:is|are|does|do|did|was)\b(?![^.?!\n]{0,60}\b(?:spen[dt]|costs?|bill|billed|invoice|expensive|pay)\b)|\bwhat(?:'s| is) wrong\b|\bhelp(?: me| us)? debug\b|\btroubleshoot|\bdiagnos\w+|\binvestigate\b|\broot cause\b|\boutage\b|\bbroke\b|\bdied at\b"),
    (K.INCIDENT, 6, r"\blatency (?:\w+ ){0,3}(?:went|jumped|spiked|rose|increased|is up|has gone|shot|exploded|doubled|tripled|climbed|is terrible|is bad)|\b(?:slower|much slower|degraded|spik(?:es?|ing) in latency)\b|\b(?:gpu )?utili[sz]ation (?:is|at|stays|drops) (?:\w+ )?\d"),
    (K.LIFECYCLE, 6, r"\b(?:can|could|may) (?:be released|go)\b(?! (?:live|public|to|on|up|ahead|into|with|for|through|down|over))|\b(?:no longer|not) needed\b(?! (?:yet|for now))|\b(?:give|giving|hand|handing) (?:\w+ ){0,4}back\b|\b(?:tear|shut|spin|scale|bring)(?:ing)? (?:\w+ ){0,4}down\b|\bteardown\b|\bshutdown\b|\bdecommission\w*|\bdeprovision\w*|\b(?:delete|terminate|remove|stop|release|kill|destroy) (?:\w+ ){0,4}(?:vms?|nodes?|cluster|instances?|machines?|endpoint|gpus?|deployment|workspace|notebooks?|resource group|environment|servers?|job|run)\b|\bswitch(?:ed)? off\b|\bturn(?:ed)? off\b|\b(?:no longer|don'?t) need (?:\w+ ){0,4}(?:vms?|nodes?|cluster|instances?|machines?|endpoint|gpus?)\b|\bfinished with the\b|\bdone with the\b"),
    (K.LIFECYCLE, 6, r"\bextend(?:ed|ing)? (?:\w+ ){0,6}(?:by|until|to|for|end|reservation|another|vms?|nodes?|cluster|gpus?|endpoint|run|job)\b|\bextension\b|\bprolong\b|\bkeep (?:\w+ ){1,5}(?:running|alive|until|up)\b|\b(?:for )?(?:another|\d+ more|one more|two more) (?:week|month|day)s?\b"),
    (K.ACCESS, 6, r"\baccess ?:|\baccess(?! to (?:some|a few|a couple of|more|any|\d+) (?:[\w-]+ )?(?:gpus?|graphics cards?|compute|accelerators?|tpus?)\b) (?:to|for|on)\b|\b(?:get|grant|give|request|need|needs|have|has|got|getting|lost) (?:\w+ ){0,4}(?:access(?! to (?:some|a few|a couple of|more|any|\d+) (?:[\w-]+ )?(?:gpus?|graphics cards?|compute|accelerators?|tpus?)\b)|permissions?|credentials|an account|accounts|api keys?|a key|keys)\b|\bonboard\w*|\bnew (?:joiners?|hires?|starters?|team members?|colleagues?|interns?)\b|\bssh\b|\b(?:add|invite) (?:\w+ ){0,4}(?:to the|to our) (?:\w+ ){0,2}(?:project|cluster|team|workspace|group)\b|\blog ?in to\b|\bpermissions? (?:to|for|on)\b|\brbac\b|\b(?:create|issue|rotate|revoke) (?:\w+ ){0,3}(?:keys?|accounts?|tokens?)\b"),
    (K.COST, 6, r"\bwhy (?:is|are|does|do|did|was)\b[^.?!\n]{0,60}\b(?:spen[dt]|costs?|bill|billed|invoice|expensive|pay)\b|\bbreak (?:it|this|that|them) down (?:by|per)\b|\bhow much (?:\w+ ){0,4}(?:cost|costs|spend|spent|paying|pay|money|we|did|does|do|is|has|are|would|will)\b|\bcosts? (?:report|breakdown|overview|per|by|estimate|of|last|this)\b|\bwhat (?:\w+ ){0,4}(?:cost|costs|spend)\b|\bspend(?:ing)? (?:report|last|this|by|per)\b|\bspent (?:on|last|this|so far)\b|\binvoices?\b|\b(?:gpu|cloud|azure|aws|our|the|openai) bill\b|\bchargeback\b|\bshowback\b|\bcost report\b|\bcheaper\b|\bsave money\b|\bfinops\b|\bbudget (?:report|overview|status)\b|\bwho is (?:using|wasting|spending)\b|\bhow many (?:\w+ ){0,5}(?:left|free|available|in use|idle)\b|\b(?:ptu|provisioned throughput) (?:vs|versus|or)\b|\bestimate\b|\bquote for\b|\bprice (?:of|for)\b"),
    (K.MONITORING, 6, r"\bmonitor(?:ing|ed|s)?\b|\bdashboards?\b|\balert(?:s|ing|ed)?\b|\bgrafana\b|\bprometheus\b|\bobservability\b|\b(?:track|measure|log|watch|see|view|visibility into|metrics (?:for|on|of)) (?:\w+ ){0,4}(?:tpm|rpm|tokens?|usage|latency|utili[sz]ation|gpu usage|requests|spend|cost|costs)\b|\bmetrics\b|\btelemetry\b|\bnotify (?:me|us)\b|\bget(?:s)? paged\b|\bslo\b|\btracking\b"),
    (K.ENDPOINT, 4, r"\bendpoints?\b|\binference (?:api|endpoint|service|server)\b|\b(?:public|private|internal|external|demo) (?:\w+ )?api\b|\bmodel (?:api|serving|server)\b|\b(?:serve|serving|host|hosting|expose|deploy|deploying)(?:s|ed)? (?:\w+[- .]?[\w.]* ){0,4}(?:model|llm|llama|mistral|mixtral|qwen|gemma|phi|whisper|chatbot|api|bert|endpoint|deepseek|sdxl|it|them)\b|\bto serve\b|\bserving\b|\b(?:openai|chat|completion|rest)[ -](?:compatible )?(?:api|url)\b|\bchatbot\b|\b(?:llm|ai|model|inference) gateway\b|\b(?:hosted|deployed) (?:behind|as|on|at)\b|\breal-?time inference\b|\bonline inference\b|\bdeploy(?:ed|ing|ment)?\b(?! (?:key|keys|pipeline))|\bgo(?:es|ing)? live\b"),
    (K.BATCH, 5, r"\brun(?:ning)? (?:[\w-]+ ){0,3}(?:predictions?|inference|scoring) (?:for|on|over)\b|\bbatch[ -](?:inference|scoring|predictions?|transcri\w+|embedding|job to (?:score|transcribe|embed|classify))\b|\boffline inference\b|\b(?:score|transcribe|embed|classify|label|caption|translate|summari[sz]e|process|ocr) (?:all|the whole|every|our|these|those|the|about|around|roughly)? ?(?:\w+ ){0,2}(?:\d[\d,.]*|[a-z]+ million|million|thousands of|hundreds of) ?\w*|\b(?:nightly|weekly|overnight|bulk) (?:\w+ )?(?:inference|scoring|predictions?|embedding|job|run|transcription)\b|\bembeddings? for (?:all|our|the|\d)"),
    (K.BATCH, 3, r"\bbatch\b(?![ -]?(?:size|\d|of \d))|\btranscri(?:be|bing|ption)\b"),
    (K.DATA, 5, r"\b(?:upload|copy|move|transfer|migrate|sync|ingest|stage|mount|download|import|load|store|put|archive|back ?up)(?:ing|ed)? (?:\w+ ){0,6}(?:data|datasets?|files?|bucket|share|images?|volume|logs|corpus|tb|gb|documents|weights|archive|records|storage|pdfs?|videos?|scans)\b|\b(?:need|want|create|provision|more|extra|additional|set up|get|give us) (?:\w+ ){0,5}(?:storage|bucket|file share|nfs|lustre|volume|disk space|scratch space|data lake|feature store|vector (?:db|database|store)|database)\b|\bstorage (?:for|account|quota)\b|\bdisk(?: is)? full\b|\bdata (?:pipeline|transfer|migration|labell?ing)\b"),
    (K.CAPACITY, 4, r"\bfine[ -]?tun(?:e|es|ing)\b|\bfine[ -]?tuned\b(?! (?:model|llm|version|weights|checkpoint|adapter))|(?<![\w-])(?:re-?|pre-?)?train(?:ing)?\b(?!-| (?:data|set|dataset|images|session|course|material|samples|the new|new))|\bq?lora\b|\bsft\b|\brlhf\b|\bdpo\b|\bhyper-?parameter (?:sweep|search)\b|\bdistill(?:ation|ing)?\b"),
    (K.CAPACITY, 3, r"\b(?:need|want|require|get|provision(?:ed)?|spin up|set up|reserve|book|allocate|rent|order|give us|have|use|procure|request(?:ing)?|looking for|like|some)\b[^.;\n]{0,40}\b(?:gpus?|vms?|nodes?|machines?|cluster|compute|capacity|servers?|tpus?|instances?|accelerators?|notebooks?|workstations?|v?cpus?|vcores?)\b|\bgpu (?:capacity|cluster|vms?|nodes?|time|hours|quota|machines?|box(?:es)?|notebooks?)\b|\b(?:compute|training) (?:cluster|capacity|power|resources)\b|\bquota (?:increase|for|to|from)\b|\b(?:increase|raise|bump|more) (?:\w+ ){0,3}quota\b|\bjupyter\w*|\bexperiments?\b"),
)  # fmt: skip
_CUE = tuple((kind, weight, re.compile(pattern)) for kind, weight, pattern in _CUES)
_BEATS = (K.LIFECYCLE, K.BATCH, K.MONITORING, K.INCIDENT, K.COST, K.ENDPOINT, K.DATA, K.CAPACITY, K.ACCESS)
"""Which kind wins between equal scores."""

_SETTING = frozenset({K.CAPACITY, K.ENDPOINT, K.BATCH, K.DATA})
"""After an incident, a sentence about these that asks for nothing tells where it happened."""
_TRAINS = re.compile(r"\bfine[ -]?tun|\bfinetun|\b(?:re-?|pre-?)?train(?:ing)?\b")
_SERVES = re.compile(r"\bendpoints?\b|\bserv(?:e|ing)\b|\bdeploy|\bhost|\bexpose|\binference\b|\bapi\b|\bchatbot\b")
_TAKES_HARDWARE = frozenset({K.INCIDENT, K.LIFECYCLE, K.COST, K.ACCESS})
"""Hardware named along with these is what they are about, not another thing to be had."""
_HARDWARE = frozenset({"machines", "accelerators", "accelerators_per_machine", "instance_type", "accelerator"})
_ON_HARDWARE = re.compile(
    r"\b(?:on|with|using|per|across|each|over|of|to|from|have|has|had|running|runs|from just|via|by) ?(?:a|an|the|just|only|these|those|our|at least|about|up to)? ?$"
)
_CUT = re.compile(
    r",? (?:and|plus|also|as well as|along with|then|but|additionally) (?:also )?|[,;:] (?:and |also |plus |then )?| - | with | / |/(?=[a-z])| & |\+ "
)
_ASK = re.compile(
    r"\b(?:can (?:you|we|i|someone)|could (?:you|we|i|someone)|would you|will you|please|pls|we(?:'d| would)? (?:also )?(?:need|want|like|require)|i(?:'d| would)? (?:also )?(?:need|want|like|require)|set ?up|provide|create|arrange|help (?:us|me)|looking for|requesting|make sure|need to|want to|get us|give us|need)\b"
)
_PLEASANTRY = re.compile(
    r"^(?:\W|\b(?:hi|hey|hello|dear|team|all|folks|everyone|there|thanks|thank you|thx|cheers|best|regards|kind|many|please|pls|"
    r"let (?:me|us) know(?: what you (?:think|need)| if (?:you need anything(?: else)?|that works|this works|there are (?:any )?questions|anything is unclear))?|"
    r"can you (?:help|do (?:that|this|it)|take a look|look into (?:it|this|that)|handle (?:it|this|that))(?: us| me| please)*|could you (?:help|do (?:that|this|it)|take a look)(?: us| me| please)*|help (?:us|me)(?: out)?|any help|appreciated|is (?:that|this|it) (?:ok|okay|possible|doable|realistic)|"
    r"asap|urgent(?:ly)?|a lot|in advance|very much|so much|sorry|quick (?:one|question|ask)|good (?:morning|afternoon|evening)|hope (?:you are|you're|all is) (?:well|doing well)|happy monday|no rush|would be (?:great|nice|awesome|lovely)|"
    r"what do you (?:think|need)(?: from us)?|when (?:can|could) (?:we|you|i) (?:start|begin|have (?:it|them))|what else do you need|we need (?:it|this|that|them|everything)(?: asap| urgently| soon)?|much|again|for|from|us|me|you|your|help|and|the|it|this|that|ok|okay|yes|no|fyi|btw|cc|re|fwd|subject|ps)\b)*$"
)
_MORE_THAN_ONE = re.compile(r"\b(?:another|second|third|separate(?:ly)?|additional(?:ly)?|different|one more)\b")


_PLAINLY_ANOTHER = re.compile(
    r"\b(?:another (?:\d|set|batch|team|group)|the other (?:team|project|group)|a second|separately)\b"
)


@dataclass(slots=True)
class Piece:
    """A stretch of one sentence. `kind` is None when it only adds to what stands around it; `bare` names hardware only."""

    start: int
    end: int
    sentence: int
    entry: int
    kind: ItemKind | None
    asks: bool = False
    bare: bool = False


@dataclass(slots=True)
class Group:
    """Pieces that belong to one item."""

    kind: ItemKind
    pieces: list[Piece] = field(default_factory=list)


def pieces(low: str, sentences: Sequence[Sentence], hardware: Sequence[tuple[int, str]]) -> list[Piece]:
    """The message cut into pieces, in order. `hardware` are (place, fact name) of what was found, in order."""
    found: list[Piece] = []
    at = 0
    for number, sentence in enumerate(sentences):
        inside: list[tuple[int, str]] = []
        while at < len(hardware) and hardware[at][0] < sentence.end:
            if hardware[at][0] >= sentence.start:
                inside.append(hardware[at])
            at += 1
        found += _cut(low, sentence, number, inside)
    return found


def groups(low: str, parts: Sequence[Piece], has_facts: Sequence[bool]) -> tuple[list[Group], list[Piece]]:
    """Items in the order of the message, and pieces that hold for all of it (or for nothing, being mere courtesy).

    One item per kind, except where a list has two entries of a kind, or a word says that another one is meant.
    """
    made: list[Group] = []
    by_kind: dict[tuple[ItemKind, int], Group] = {}
    loose: list[Piece] = []
    current: Group | None = None
    for part, facts in zip(parts, has_facts, strict=True):
        kind = part.kind
        if kind is None and _asks_something_else(low, part, facts):
            kind = K.UNCLEAR
        if kind is None:
            if current is None or _is_courtesy(low, part) or _for_all(low, part):
                loose.append(part)
            else:
                current.pieces.append(part)
            continue
        if (
            current is not None
            and current.kind is K.INCIDENT
            and kind in _SETTING
            and not part.asks
            and part.entry == current.pieces[-1].entry
        ):
            current.pieces.append(part)
            continue
        if (
            part.bare
            and not part.asks
            and current is not None
            and (current.kind is kind or (current.kind is K.BATCH and _OF_IT.match(low, part.start, part.end)))
            and current.pieces[0].entry == 0
        ):
            current.pieces.append(part)
            continue
        key = (kind, part.entry)
        group = by_kind.get(key) or (None if part.entry else by_kind.get((kind, 0)))
        if group is None and part.entry and kind in {K.MONITORING, K.ACCESS, K.COST, K.UNCLEAR}:
            group = next((other for other in made if other.kind is kind), None) if kind is not K.UNCLEAR else None
        if group is None and not part.entry:
            group = next((other for other in reversed(made) if other.kind is kind), None)
        if group is not None and (_is_another(low, part, group is current) or _acts_otherwise(low, part, group)):
            group = None
        if group is None:
            group = Group(kind)
            made.append(group)
            by_kind[key] = group
        group.pieces.append(part)
        current = group
    return made, loose


_OF_IT = re.compile(r"\W*(?:each|it|they|this|every one|one)(?: of them)? (?:takes?|took|runs?|needs?|fits?|uses?)\b")
_STOPS, _EXTENDS = (pattern for kind, _, pattern in _CUE if kind is K.LIFECYCLE)


def _acts_otherwise(low: str, part: Piece, group: Group) -> bool:
    """Whether one of the two stops something and the other keeps something."""
    if group.kind is not K.LIFECYCLE:
        return False
    stops, extends = (pattern.search(low, part.start, part.end) is not None for pattern in (_STOPS, _EXTENDS))
    stopped = any(_STOPS.search(low, each.start, each.end) for each in group.pieces)
    return stops != extends and stops != stopped


def _is_another(low: str, part: Piece, same: bool) -> bool:
    """Whether a piece says that it is about one more of its kind; right after the first, only in plain words."""
    pattern = _PLAINLY_ANOTHER if same else _MORE_THAN_ONE
    return part.kind is not K.UNCLEAR and pattern.search(low, part.start, part.end) is not None


def _cut(low: str, sentence: Sentence, number: int, hardware: Sequence[tuple[int, str]]) -> Iterator[Piece]:
    """Cuts a sentence at its joints, then rejoins what does not ask for something else than the piece before."""
    joints = [(match.start(), match.end(), match[0]) for match in _CUT.finditer(low, sentence.start, sentence.end)]
    if len(joints) > 400:
        joints = []  # A sentence of thousands of commas is a table or noise.
    edges = [sentence.start, *(end for _, end, _ in joints), sentence.end]
    current: Piece | None = None
    for at, (start, end) in enumerate(pairwise(edges)):
        joint = joints[at - 1][2] if at else ""
        kind, score = _kind(low, start, end, hardware)
        bare = score == _ENOUGH and kind is K.CAPACITY
        asks = _ASK.search(low, start, end) is not None
        if current is not None and joint == " with " and kind is not K.MONITORING:
            kind = None
        if current is not None and not asks and _tells_more(current.kind, kind, bare, start, end, hardware):
            kind = None
        another = kind is K.CAPACITY and _PLAINLY_ANOTHER.search(low, start, end) is not None
        if (
            current is not None
            and bare
            and not another
            and (current.kind is K.CAPACITY or _leans(low, start, hardware))
        ):
            kind = None
        if current is not None and current.kind is None and not (current.asks and asks):
            current.end, current.kind, current.asks, current.bare = end, kind, current.asks or asks, bare
        elif (
            current is None
            or (kind is not None and (another or kind is not current.kind))
            or (kind is None and asks and joint)
        ):
            if current is not None:
                yield current
            current = Piece(start, end, number, sentence.entry, kind, asks, bare)
        else:
            current.end = end
    if current is not None:
        yield current


def _tells_more(
    before: ItemKind | None,
    kind: ItemKind | None,
    bare: bool,
    start: int,
    end: int,
    hardware: Sequence[tuple[int, str]],
) -> bool:
    """Whether a part that asks for nothing itself only adds to the work before it.

    Cost is one of the things that are monitored; cards beside an endpoint are what it runs on, machines are asked for.
    """
    if before is K.MONITORING:
        return kind in {K.COST, K.INCIDENT}
    if not bare or before is None:
        return False
    own = {name for place, name in hardware if start <= place < end}
    return before in _TAKES_HARDWARE or (before in {K.ENDPOINT, K.BATCH} and not own & {"machines", "instance_type"})


def _leans(low: str, start: int, hardware: Sequence[tuple[int, str]]) -> bool:
    """Whether the first hardware from `start` on stands behind "on", "with" or the like: it belongs to what is before."""
    first = next((place for place, _ in hardware if place >= start), start)
    return _ON_HARDWARE.search(low, max(0, first - 24), first) is not None or first - start > 40


_NO_ENDPOINT = re.compile(
    r"\b(?:no|without|(?:don'?t|do not|won'?t|doesn'?t) (?:need|want)|not) (?:an? |any |the )*(?:\w+ )?(?:endpoint|deployment|serving)\b"
    r"(?! (?:works?|answers?|responds?|is|are|has|can)\b)"
)
"""What is said not to be wanted is no work."""


def _kind(low: str, start: int, end: int, hardware: Sequence[tuple[int, str]]) -> tuple[ItemKind | None, int]:
    scores: dict[ItemKind, int] = {}
    for kind, weight, pattern in _CUE:
        if pattern.search(low, start, end):
            scores[kind] = scores.get(kind, 0) + weight
    own = {name for place, name in hardware if start <= place < end and name in _HARDWARE}
    if own:
        scores[K.CAPACITY] = scores.get(K.CAPACITY, 0) + _ENOUGH
    if K.CAPACITY in scores:
        scores[K.CAPACITY] = min(scores[K.CAPACITY], 5)
    if _NO_ENDPOINT.search(low, start, end):
        scores.pop(K.ENDPOINT, None)
    if K.CAPACITY in scores and K.ENDPOINT in scores:
        # "an endpoint for the model we fine-tuned" is one; "fine-tune the model behind our endpoint" is capacity.
        training = _TRAINS.search(low, start, end)
        serving = _SERVES.search(low, start, end)
        first = training is not None and (serving is None or training.start() < serving.start())
        scores[K.ENDPOINT if not first else K.CAPACITY] = 5
        scores[K.CAPACITY if not first else K.ENDPOINT] = 3
    if scores.get(K.ENDPOINT) and re.search(r"\bto serve\b|\bfor (?:serving|inference)\b", low[start:end]):
        scores[K.ENDPOINT] += 4
    if scores.get(K.BATCH):
        scores[K.BATCH] += min(scores.get(K.CAPACITY, 0), 5)
    if not scores:
        return None, 0
    best = max(scores.values())
    return next(kind for kind in _BEATS if scores.get(kind) == best), best


def _asks_something_else(low: str, part: Piece, has_facts: bool) -> bool:
    text = low[part.start : part.end]
    if has_facts or not part.asks:
        return False
    words = re.findall(r"[a-z']{2,}", text)
    return (
        len(words) >= 4
        and not _is_courtesy(low, part)
        and not re.match(r"^\W*(?:and |so )?(?:we|it|this|that|they|i) (?:\w+ ){0,2}(?:it|this|that|them)\b", text)
    )


def _is_courtesy(low: str, part: Piece) -> bool:
    if part.end - part.start > 240:
        return False
    return _PLEASANTRY.match(low[part.start : part.end].strip(" ,.!?;:-\n")) is not None


def _for_all(low: str, part: Piece) -> bool:
    return (
        re.search(
            r"\b(?:everything|all of (?:this|it|that)|all (?:three|four|of the above)|overall|in total|for all)\b",
            low[part.start : part.end],
        )
        is not None
    )
