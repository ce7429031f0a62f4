"""The artifact store: content-addressed pieces in packs, in a folder, in a bucket, or in memory."""

from groundplane.adapters.artifacts.store import PackStore as PackStore
from groundplane.adapters.artifacts.store import bucket_store as bucket_store
from groundplane.adapters.artifacts.store import folder_store as folder_store
from groundplane.adapters.artifacts.store import memory_store as memory_store
from groundplane.adapters.artifacts.store import seal_key as seal_key
