"""The workbook: every fragment is trained by somebody, and never by two at once unfenced."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol.events import Lease, ServerReady
from tardygrad.protocol.workbook import Fragment, WorkBook

PLAN = FragmentPlan(samples=40, batch_size=4, fragment_batches=3, seed=0)
EPOCHS, SHARDS, WORKERS = 3, 2, 3
Standing = dict[Fragment, int]


class Shards:
    """What servers would do: book ranges, raise fences, go back to a snapshot."""

    def __init__(self) -> None:
        self.standing: list[Standing] = [{} for _ in range(SHARDS)]
        self.fences: list[Standing] = [{} for _ in range(SHARDS)]
        self.snapshots: list[Standing] = [{} for _ in range(SHARDS)]

    def push(self, shard: int, lease: Lease, batches: int) -> bool:
        """Train on from where the shard stands; True when it took something."""
        where = (lease.epoch, lease.fragment)
        at = self.standing[shard].get(where, 0)
        stop = min(at + batches, lease.stop)
        if lease.fence < self.fences[shard].get(where, 0) or at < lease.first or stop == at:
            return False
        self.standing[shard][where] = stop
        return True

    def ready(self, shard: int) -> ServerReady:
        standing = self.standing[shard]
        complete = tuple(
            e
            for e in range(EPOCHS)
            if all(
                standing.get((e, f), 0) == PLAN.batches(f) for f in range(PLAN.fragments_per_epoch)
            )
        )
        nexts = tuple((e, f, n) for (e, f), n in sorted(standing.items()) if e not in complete)
        return ServerReady(shard, 1, 0, complete, nexts)


class WorkBookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = WorkBook(PLAN, EPOCHS, SHARDS, 1)
        self.shards = Shards()
        self.old: list[Lease] = []
        self.highest_fence = 0

    # --- what workers and servers do ----------------------------------------------------------

    @rule(worker=st.integers(0, WORKERS - 1))
    def grant(self, worker: int) -> None:
        available = self.book.available()
        lease = self.book.grant(worker, 1)
        assert (lease is not None) == available
        if lease is None:
            return
        assert lease.fence > self.highest_fence
        self.highest_fence = lease.fence
        where = (lease.epoch, lease.fragment)
        stands = [s.get(where, 0) for s in self.shards.standing]
        # It begins at the lowest batch that some shard lacks, with the others' standings as cuts.
        assert lease.first == min(stands) < lease.stop
        assert set(lease.cuts) == set(stands) - {lease.first}
        # Nobody else can change a shard: every older lease of the fragment is fenced everywhere.
        for other in [*self.old, *self.book.leases.values()]:
            if (other.epoch, other.fragment) == where and other.fence != lease.fence:
                assert all(other.fence < f.get(where, 0) for f in self.shards.fences)

    @rule(data=st.data(), shard=st.integers(0, SHARDS - 1), batches=st.integers(1, 3))
    def push(self, data: st.DataObject, shard: int, batches: int) -> None:
        leases = [*self.book.leases.values(), *self.old]
        if leases:
            lease = data.draw(st.sampled_from(leases))
            self.shards.push(shard, lease, batches)
            self.tell_booked(shard, (lease.epoch, lease.fragment))

    def tell_booked(self, shard: int, where: Fragment) -> None:
        if self.shards.standing[shard].get(where, 0) == PLAN.batches(where[1]):
            self.book.booked(shard, *where)

    @rule(worker=st.integers(0, WORKERS - 1))
    def lose_worker(self, worker: int) -> None:
        held = [x for x in self.book.leases.values() if x.worker == worker]
        assert sorted(self.book.release(worker)) == sorted((x.epoch, x.fragment) for x in held)
        assert not self.book.holds_lease(worker)
        self.old += held

    @precondition(lambda self: self.book.fencing)
    @rule(data=st.data(), shard=st.integers(0, SHARDS - 1), twice=st.booleans())
    def answer_fence(self, data: st.DataObject, shard: int, twice: bool) -> None:
        where = data.draw(st.sampled_from(sorted(self.book.fencing)))
        fence = self.book.fencing[where].fence
        self.highest_fence = max(self.highest_fence, fence)
        fences = self.shards.fences[shard]
        fences[where] = max(fences.get(where, 0), fence)
        standing = self.shards.standing[shard].get(where, 0)
        assert not self.book.fenced(shard, where, fence - 1, standing)
        self.book.fenced(shard, where, fence, standing)
        if twice:
            assert not self.book.fenced(shard, where, fence, standing)

    @rule(shard=st.integers(0, SHARDS - 1))
    def snapshot(self, shard: int) -> None:
        self.shards.snapshots[shard] = dict(self.shards.standing[shard])

    @rule(shard=st.integers(0, SHARDS - 1))
    def lose_server(self, shard: int) -> None:
        self.shards.standing[shard] = dict(self.shards.snapshots[shard])
        # The restored server refuses all fences below its floor.
        floor = self.book.new_fence()
        every = [(e, f) for e in range(EPOCHS) for f in range(PLAN.fragments_per_epoch)]
        self.shards.fences[shard] = dict.fromkeys(every, floor)
        self.old += self.book.leases.values()
        self.book.restored(self.shards.ready(shard))
        assert not self.book.leases
        self.highest_fence = max(self.highest_fence, self.book.next_fence - 1)

    # --- what must be true ----------------------------------------------------------------------

    @invariant()
    def no_fragment_is_leased_twice(self) -> None:
        leased = Counter((x.epoch, x.fragment) for x in self.book.leases.values())
        assert all(n == 1 for n in leased.values())
        assert not set(leased) & set(self.book.fencing)

    @invariant()
    def at_most_two_epochs_are_open(self) -> None:
        touched = {e for s in self.shards.standing for e, _ in s}
        whole = {
            e for e in touched if all(e in self.shards.ready(s).complete for s in range(SHARDS))
        }
        leased = {x.epoch for x in self.book.leases.values()}
        assert len(leased - whole) <= 2

    @invariant()
    def done_means_done_everywhere(self) -> None:
        done = all(len(self.shards.ready(s).complete) == EPOCHS for s in range(SHARDS))
        assert self.book.finished <= done

    def teardown(self) -> None:
        """Whatever happened, work goes on to the end: nothing is lost, nobody is stuck."""
        for _ in range(1000):
            for where in list(self.book.fencing):
                for shard in range(SHARDS):
                    if where in self.book.fencing:
                        fence = self.book.fencing[where].fence
                        self.shards.fences[shard][where] = fence
                        standing = self.shards.standing[shard].get(where, 0)
                        self.book.fenced(shard, where, fence, standing)
            for lease in list(self.book.leases.values()):
                for shard in range(SHARDS):
                    while self.shards.push(shard, lease, 1):
                        pass
                    self.tell_booked(shard, (lease.epoch, lease.fragment))
            if self.book.finished:
                break
            self.book.grant(0, 1)
        assert self.book.finished
        assert self.book.remaining() == 0 and not self.book.available()
        ended = self.book.newly_ended()
        assert set(ended) == set(range(EPOCHS)) and self.book.newly_ended() == []
        assert self.book.fragments_done() == EPOCHS * PLAN.fragments_per_epoch


TestWorkBook = WorkBookMachine.TestCase
TestWorkBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def resumed(ledgers: list[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]]) -> WorkBook:
    book = WorkBook(PLAN, EPOCHS, len(ledgers), 1)
    for shard, (complete, nexts) in enumerate(ledgers):
        book.restored(ServerReady(shard, 1, 0, complete, nexts))
    return book


def test_shards_that_were_saved_at_different_moments_ask_each_other() -> None:
    # Shard 1 has finished an epoch of which shard 0 has seen but little; a snapshot each.
    book = resumed([((), ((0, 0, 2),)), ((0,), ((1, 0, 3), (1, 1, 1)))])
    wanted = {(0, f) for f in range(PLAN.fragments_per_epoch)} | {(1, 0), (1, 1)}
    assert set(book.fencing) == wanted


def test_what_a_single_shard_has_whole_is_not_trained_again() -> None:
    book = resumed([((0, 1), ((2, 0, 3),))])
    assert not book.fencing
    assert book.newly_ended() == [0, 1]
    lease = book.grant(0, 1)
    assert lease is not None and (lease.epoch, lease.fragment, lease.first) == (2, 1, 0)


def test_epochs_that_were_reported_before_are_not_again() -> None:
    book = WorkBook(PLAN, EPOCHS, 1, 1)
    book.forget_ended(1)
    book.restored(ServerReady(0, 1, 0, (0, 1), ()))
    assert book.newly_ended() == [1]


def test_remaining_counts_what_nobody_has() -> None:
    book = WorkBook(PLAN, EPOCHS, SHARDS, 1)
    total = EPOCHS * PLAN.fragments_per_epoch
    assert book.remaining() == total
    for worker in range(3):
        book.grant(worker, 1)
    assert book.remaining() == total - 3
    book.release(1)
    assert book.remaining() == total - 2
