"""Who is there: members of topics, on all processes, with changes joined into few messages."""

from __future__ import annotations

from trio_wskit._core.presence import PresenceAnswer as PresenceAnswer
from trio_wskit._core.presence import PresenceBeat as PresenceBeat
from trio_wskit._core.presence import PresenceChange as PresenceChange
from trio_wskit._core.presence import PresenceSnapshot as PresenceSnapshot
from trio_wskit._core.presence import TopicDiff as TopicDiff
from trio_wskit.presence._beats import PresenceStatistics as PresenceStatistics
from trio_wskit.presence._client import ClientPresence as ClientPresence
from trio_wskit.presence._messages import PresenceDiff as PresenceDiff
from trio_wskit.presence._messages import PresenceList as PresenceList
from trio_wskit.presence._messages import PresenceMember as PresenceMember
from trio_wskit.presence._messages import PresenceView as PresenceView
from trio_wskit.presence._presence import Presence as Presence
from trio_wskit.presence.memory import MemoryPresence as MemoryPresence
