"""Misspelt words of the trade. One letter wrong, missing, doubled or swapped is read as what was meant, and said.

Source of the method: Garbe's symmetric deletes: both words with one letter taken out are compared.
"""

from __future__ import annotations

_REAL_WORDS = """
    mixtral addresses alerted allocated approval approves assess assessed bathed bunkers certain clustered
    connects coasts conference containing contained containers dataset's deadlines decidable depends deployer
    deployments deploys documented endpoints excess excessive expend extended extends extents external fridays
    hinder holding hosted hostile instant interface interval latest latent machined memories mirror modal models
    moderate moderns modes mounting network notebooks online pavement pedestal permissive piloting poverty
    preference precise predicting predictions privates privately prediction pricing processes producing products
    profession projected projects promised provide provided provides provision public publics publicly quoted
    raining reasons regional regions requested requester requesting resources restraining retraining served
    serves server's services severs starting storages store stores straining strange system's systems tokenise
    tomorrows training's trains trainings uploads uploaded uploading utilities workloads weekends weekday models
    modern modeled storing training draining running turning tunning's tubing tuners retrained pretrained
    pretrain trainer trainers reservations schedules scheduler scheduling requesters prompts prompt monitors
    terminated terminates licenses licensed licence pending spending bending sending lending vending tending
    mending hosting hoisting costing posting coasting toasting boasting roasting listing lasting testing resting
    nesting inference's conferences inferences reference references
"""

_WORDS = """
    accelerator accelerators accelerated access alerts alerting allocate already amazon annotate approval approved
    available azure before budget capacity checkpoint checkpoints checkpointing cluster clusters compliance compute
    container containers dashboard dashboards database dataset datasets deadline decommission delete deploy deployed
    deployment development document documents endpoint endpoints environment experiment extend extension finetune
    finetuned finetuning
    friday gateway gpus grafana hosting immediately incident inference infrastructure instance instances internal
    internet
    kubernetes latency license llama machine machines memory mistral model models monday monitor monitored monitoring
    namespace network nodes notebook onboard onboarding parameter parameters pending permission permissions pipeline
    precision prediction pretraining private production project prometheus provision provisioned provisioning public
    quantized quota region registry request requests reservation saturday schedule scheduled server serverless servers
    service serving shutdown staging storage sunday system teardown terminate throughput thursday tokens tomorrow
    training transcribe transformers tuesday tuning upload urgent utilization wednesday weekend workload workloads
    january february march april june july august september october november december
"""

_SHORT_WORDS = "train model token nodes serve azure"

_REAL = _REAL_WORDS.split()

_KNOWN = frozenset(_WORDS.split())
_TAKEN = _KNOWN | frozenset(_REAL)


def _without_one(word: str) -> set[str]:
    return {word[:at] + word[at + 1 :] for at in range(len(word))}


def _index() -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for word in sorted(_KNOWN):
        if len(word) >= 6:
            for part in {word, *_without_one(word)}:
                index.setdefault(part, []).append(word)
    return index


_INDEX = _index()
# Of words with five letters only swapped neighbours are taken for a slip: too many real words lie near them otherwise.
_SWAPPED = {
    word[:at] + word[at + 1] + word[at] + word[at + 2 :]: word for word in _SHORT_WORDS.split() for at in range(4)
}


def near_word(word: str) -> str | None:
    """The one word of the trade that is a single slip away from `word` (small letters); None when there is none.

    Real words near one (`pending`, `spending`) are left alone, and so is a word that could be two of ours.
    """
    if len(word) < 6:
        return _SWAPPED.get(word) if _SWAPPED.get(word) != word else None
    if word in _TAKEN or _is_inflected(word):
        return None
    near = {
        meant
        for part in {word, *_without_one(word)}
        for meant in _INDEX.get(part, ())
        if meant[0] == word[0] and _one_slip(word, meant)
    }
    return near.pop() if len(near) == 1 else None


def _is_inflected(word: str) -> bool:
    return any(word.endswith(ending) and word.removesuffix(ending) in _TAKEN for ending in ("s", "es", "ed", "d", "ly"))


def _one_slip(one: str, other: str) -> bool:
    """Whether, before the last letter, one letter changed, added or left out, or two swapped, make `other`."""
    if abs(len(one) - len(other)) > 1:
        return False
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    left, right = one[same:], other[same:]
    if len(left) <= 1 and len(right) <= 1:
        return False  # Only the ending differs: `approve` and `approved` are both words.
    swapped = len(left) > 1 and left[1::-1] + left[2:] == right
    return left[1:] == right[1:] or left[1:] == right or left == right[1:] or swapped
