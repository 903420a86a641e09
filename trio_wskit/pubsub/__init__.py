"""Topics: the local index, and brokers that join several processes."""

from .memory import MemoryPubSub as MemoryPubSub
