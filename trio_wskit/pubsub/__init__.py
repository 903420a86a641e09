"""Topics: the local index, and brokers that join several processes."""

from trio_wskit._core.patterns import TopicPattern as TopicPattern
from trio_wskit._core.templates import TopicTemplate as TopicTemplate
from trio_wskit._core.templates import topic as topic
from trio_wskit._core.topics import TopicRules as TopicRules
from trio_wskit.pubsub._policy import PubSubPolicy as PubSubPolicy
from trio_wskit.pubsub._topics import TopicChange as TopicChange
from trio_wskit.pubsub.memory import MemoryPubSub as MemoryPubSub
