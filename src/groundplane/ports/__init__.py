"""Everything Groundplane asks of the outside world, as small protocols.

Each method's docstring answers: what if it is called twice, dies halfway, or never answers?
Adapters implement these; `wiring.py` is the only place that knows which adapter stands behind which port.
"""

from groundplane.ports.basics import Clock as Clock
from groundplane.ports.basics import Ids as Ids
from groundplane.ports.models import BlobStore as BlobStore
from groundplane.ports.models import FoundFile as FoundFile
from groundplane.ports.models import ModelFiles as ModelFiles
from groundplane.ports.models import ModelServer as ModelServer
from groundplane.ports.models import Provenance as Provenance
from groundplane.ports.models import Readiness as Readiness
from groundplane.ports.models import Signer as Signer
from groundplane.ports.money import Notice as Notice
from groundplane.ports.money import Notifier as Notifier
from groundplane.ports.money import PriceBook as PriceBook
from groundplane.ports.money import SnapshotSink as SnapshotSink
from groundplane.ports.money import UsageLog as UsageLog
from groundplane.ports.planning import CatalogBook as CatalogBook
from groundplane.ports.planning import CloudSource as CloudSource
from groundplane.ports.planning import GapFiller as GapFiller
from groundplane.ports.planning import MachineProbe as MachineProbe
from groundplane.ports.planning import PolicyFiles as PolicyFiles
from groundplane.ports.planning import QuotaSource as QuotaSource
from groundplane.ports.running import Executor as Executor
from groundplane.ports.running import RunFiles as RunFiles
from groundplane.ports.running import SecretStore as SecretStore
from groundplane.ports.running import Unplaced as Unplaced
from groundplane.ports.store import ChainHead as ChainHead
from groundplane.ports.store import Row as Row
from groundplane.ports.store import Store as Store
from groundplane.ports.store import Tx as Tx
