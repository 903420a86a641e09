"""Patterns that many applications need, each a small module on the public API: read it, use it, or copy it."""

from __future__ import annotations

from trio_wskit.patterns.delta_sync import DeltaLog as DeltaLog
from trio_wskit.patterns.delta_sync import DeltaReplica as DeltaReplica
from trio_wskit.patterns.delta_sync import Deltas as Deltas
from trio_wskit.patterns.delta_sync import RevisionGap as RevisionGap
from trio_wskit.patterns.delta_sync import Snapshot as Snapshot
from trio_wskit.patterns.delta_sync import SyncOp as SyncOp
from trio_wskit.patterns.flow_control import DataAck as DataAck
from trio_wskit.patterns.flow_control import FlowControl as FlowControl
from trio_wskit.patterns.flow_control import FlowPolicy as FlowPolicy
from trio_wskit.patterns.flow_control import FlowSender as FlowSender
from trio_wskit.patterns.flow_control import ResourceExhausted as ResourceExhausted
from trio_wskit.patterns.state_channels import CatchUpRequest as CatchUpRequest
from trio_wskit.patterns.state_channels import SequenceGap as SequenceGap
from trio_wskit.patterns.state_channels import StateChannel as StateChannel
from trio_wskit.patterns.state_channels import StateReplica as StateReplica
from trio_wskit.patterns.state_channels import StateSync as StateSync
from trio_wskit.patterns.state_channels import StateUpdate as StateUpdate
