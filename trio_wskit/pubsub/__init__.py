"""Topics: the local index, and brokers that join several processes."""

from trio_wskit._budget import ByteBudget as ByteBudget
from trio_wskit._core.overflow import Block as Block
from trio_wskit._core.overflow import Conflate as Conflate
from trio_wskit._core.overflow import Overflow as Overflow
from trio_wskit._core.overflow import block as block
from trio_wskit._core.overflow import conflate as conflate
from trio_wskit._core.patterns import TopicPattern as TopicPattern
from trio_wskit._core.templates import TopicTemplate as TopicTemplate
from trio_wskit._core.templates import topic as topic
from trio_wskit._core.topics import TopicRules as TopicRules
from trio_wskit.pubsub._broker import BrokerCounts as BrokerCounts
from trio_wskit.pubsub._broker import BrokeredPubSub as BrokeredPubSub
from trio_wskit.pubsub._broker import with_broker as with_broker
from trio_wskit.pubsub._fanout import BackpressureCounts as BackpressureCounts
from trio_wskit.pubsub._policy import PubSubPolicy as PubSubPolicy
from trio_wskit.pubsub._supervise import ConsumerHealth as ConsumerHealth
from trio_wskit.pubsub._supervise import RestartPolicy as RestartPolicy
from trio_wskit.pubsub._topics import TopicChange as TopicChange
from trio_wskit.pubsub.memory import MemoryBroker as MemoryBroker
from trio_wskit.pubsub.memory import MemoryBrokerConsumer as MemoryBrokerConsumer
from trio_wskit.pubsub.memory import MemoryBrokerDriver as MemoryBrokerDriver
from trio_wskit.pubsub.memory import MemoryPubSub as MemoryPubSub
from trio_wskit.pubsub.memory import MemorySelectiveConsumer as MemorySelectiveConsumer
