"""What a run tells about itself: one stream of events, and everything that derives from it.

A run tells what happens to a ``Recorder``, which stamps each event and hands it to the log
(``sink``: ``metrics.jsonl``, the only truth) and to the views that look on (``console``: live
terminal, plain lines or nothing; ``tensorboard``).  After or during the run ``report`` draws
``metrics.mat`` and ``curves.png`` from the log alone.  Heavy libraries are imported only by what
needs them.

Every event has ``event`` (its kind) and ``time_s`` (seconds since the run's first start; a resumed
run goes on from there).  Epochs count from 1 here, as people do.

==========  =======================================================================================
event       fields
==========  =======================================================================================
run_start   run, name, incarnation, samples, workers, servers, epochs, samples_per_epoch,
            batch_size, method, engine, seed
member      kind (worker, server), id, incarnation, state (started, ready, died, suspected,
            put_aside, leaving, left), reason
progress    about every 0.5 s: epoch (1.37 = 37 % into the second), samples (applied in the run so
            far), samples_per_s and loss (since the last progress; null if none), learning_rate,
            staleness {mean, p50, p99, max}, bytes_pushed, bytes_unencoded (all since the stretch
            began), workers: a row for each slot
            {worker, incarnation, state (starting, training, waiting, dead, restarting, put_aside,
            leaving, left, done), reason (of the state, or empty), samples, samples_per_s,
            staleness, computing_s, waiting_s, communicating_s, exchanges, scatter_s2, answers,
            answering_s, elapsed_s, restarts}
epoch       epoch (just finished), samples, loss (mean over the epoch)
evaluate    epoch, samples, loss, each metric by its name, at_s (when the parameters were read),
            final
checkpoint  step, samples, seconds, bytes, path
run_end     outcome (done, preempted, failed), reason, samples, seconds, samples_per_s,
            first_update_s, staleness, staleness_histogram {worker: {staleness: count}} (of the
            stretch), workers (as in progress, samples_per_s over the whole stretch), servers
            {server, pushes, applying_s}, ledger {exact, applied, dropped, missing, twice}, digest,
            bytes_pushed, bytes_unencoded (what pushes would have been without a codec),
            bytes_pulled, messages_refused, final {metric: value}
==========  =======================================================================================
"""

from tardygrad.metrics.console import PlainView, QuietView, View, choose
from tardygrad.metrics.recorder import Recorder
from tardygrad.metrics.sink import MetricsLog
from tardygrad.metrics.summary import Staleness, summarise

__all__ = [
    "MetricsLog",
    "PlainView",
    "QuietView",
    "Recorder",
    "Staleness",
    "View",
    "choose",
    "summarise",
]
