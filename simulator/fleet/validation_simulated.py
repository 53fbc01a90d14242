"""The simulated half of the validation: the fleet simulator's own parts, on the real half's
schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.fleet.events import Clock
from simulator.fleet.group import AnswerLog, Group
from simulator.fleet.lines import PacketLines, PlainLines
from simulator.fleet.policies import Policy, PolicyName, make_policy
from simulator.fleet.profiles import CloudProfile, DeviceProfile
from simulator.fleet.recordings import Recording
from simulator.fleet.replica import Replica
from simulator.fleet.simulated_edge import SimulatedEdge
from simulator.fleet.tracks import Tracks
from simulator.fleet.validation_edge import options_of
from simulator.fleet.validation_real import Turn
from simulator.fleet.ways import LinkMaker
from simulator.fleet.wire import WireSizes
from simulator.link_spec import LinkSpec

_FOREVER = 1e9


class ScheduledGroup(Group):
    """One edge that asks what its turn says, when it says, and does not think in between."""

    def follow(self, turn: Turn, closing_seconds: float) -> None:
        """Take the turn; comes before :meth:`begin`.  A session takes ``closing_seconds`` to close,
        before the next is opened."""
        self._turn, self._order = turn, iter(turn.order)
        self._left, self._closing = len(turn.order), closing_seconds

    def draw(self) -> int:
        """The next text of the turn."""
        return next(self._order)

    def begin(self, edge: SimulatedEdge) -> None:
        """The turn's first question."""
        self.env.call_at(self._turn.begin, edge.ask)

    def finished(self, edge: SimulatedEdge, at: float) -> None:
        """The next question comes as soon as the session is closed."""
        self.log.add(edge, at)
        self._left -= 1
        if self._left:
            self.env.call_at(at + self._closing, edge.ask)


def simulate(
    recording: Recording,
    policy: str,
    turns: Sequence[Turn],
    device: DeviceProfile,
    cloud: CloudProfile,
    link: LinkSpec,
    seed: int,
) -> list[AnswerLog]:
    """What the simulator makes of the same turns, a log for each edge."""
    env = Clock()
    replica = Replica(env, cloud)
    noise = np.random.default_rng(seed)
    maker = LinkMaker(link, noise.spawn(1)[0])
    tracks, sizes = Tracks(recording), WireSizes.of(recording.model)
    groups = []
    for number, turn in enumerate(turns):
        group = ScheduledGroup(
            env,
            f"edge {number}",
            device,
            policy_of(policy),
            recording,
            tracks,
            sizes,
            noise.spawn(1)[0],
            lambda _now, _chance: 0.0,
            horizon=_FOREVER,
            max_tokens=max(answer.length for answer in recording.answers),
        )
        group.follow(turn, link.rtt_ms / 1e3)
        lines = (
            PlainLines(group, *maker.make_plain())
            if maker.plain
            else PacketLines(group, *maker.make_packets(env))
        )
        group.begin(SimulatedEdge(group, lines, replica))
        groups.append(group)
    env.run()
    return [group.log for group in groups]


def policy_of(policy: str) -> Policy:
    """The plan that a real edge follows by that name; raises as :func:`options_of`."""
    options = options_of(policy)
    name = PolicyName(policy.partition("@")[0])
    if name is PolicyName.CLOUD_ONLY:
        return make_policy(name)
    return Policy(name, options.plan)
