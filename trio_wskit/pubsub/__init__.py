"""Topics: the local index, and brokers that join several processes."""

from trio_wskit.pubsub.memory import MemoryPubSub as MemoryPubSub
