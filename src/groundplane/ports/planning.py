"""What a plan asks of the world: rules, machines, clouds, prices, quotas, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from groundplane.domain.catalogue.changes import Proposal, TableView
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.domain.hardware import Hardware
from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Suggestion
from groundplane.domain.planning.recon import CloudView, Machine


class PolicyFiles(Protocol):
    """The operator's folder of rules, and a copy of what was last in force."""

    @property
    def folder(self) -> str:
        """Where it is, for people."""
        ...

    async def read(self) -> dict[str, str]:
        """Every policy file by name; none when the folder is not there. InvalidInput for what can't be read as text."""
        ...

    async def last_good(self) -> dict[str, str]:
        """What `keep` was last given; nothing at first. IntegrityFailure when it was damaged."""
        ...

    async def keep(self, texts: Mapping[str, str]) -> None:
        """Remembers a set that is in force, whole or not at all. Twice is the same as once."""
        ...


class MachineProbe(Protocol):
    """The machine that the control plane runs on. Raises Unavailable when its driver does not answer in time."""

    async def look(self) -> Machine:
        """What it has, without speeds. Changes nothing."""
        ...

    async def measure(self) -> Machine:
        """With the speed of its disks, through bounded temporary files that are gone afterwards, however it ends."""
        ...


class CloudSource(Protocol):
    """One cloud, asked with the operator's own tools and credentials. It only reads."""

    @property
    def cloud(self) -> str:
        """As the catalogue names it."""
        ...

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        """One view per region. What did not answer is a gap in the view, with its reason; never an error or a guess."""
        ...


class CatalogBook(Protocol):
    """The catalogue with the operator's rows laid over it. Raises InvalidInput for files of the operator's at fault."""

    def hardware(self) -> Hardware:
        """Accelerators and instance types as they stand now."""
        ...

    def catalogue(self) -> Catalogue:
        """All of it as it stands now; the same object for as long as no file changed."""
        ...

    def tables(self) -> list[TableView]:
        """Every table without its rows."""
        ...

    def table(self, name: str) -> TableView:
        """One table with its rows. NotFound for a name that is no table."""
        ...

    def propose(
        self, *, documents: Mapping[str, str], prices: Sequence[ListPrice], regions: Sequence[str], replace: bool
    ) -> Proposal:
        """The operator's files as they would be, checked whole. Writes nothing. Raises InvalidInput with all faults."""
        ...

    def write(self, proposal: Proposal) -> None:
        """Puts the proposed files in place, each whole or not at all. Twice is the same as once."""
        ...


class QuotaSource(Protocol):
    """What the clouds have left, as they say it now or lately."""

    async def quotas(self, clouds: Sequence[str], skus: Sequence[str], regions: Sequence[str]) -> tuple[QuotaFact, ...]:
        """Of what is named, else of everything known. What did not answer is not there; nothing is raised for it."""
        ...


class GapFiller(Protocol):
    """Something that reads the message and proposes facts that are still missing."""

    async def suggest(self, message: str, asked: Sequence[tuple[int, str, str]]) -> tuple[Suggestion, ...]:
        """Proposals for (item, fact, why it matters), each with the words it goes by. Raises Unavailable.

        Calling it twice costs twice and may answer otherwise; nothing depends on its answer.
        """
        ...
