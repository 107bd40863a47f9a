"""The training program: one loop, whichever launcher started it and whatever the ZeRO stage."""

import logging
import secrets
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from shards.batches import Batch
from shards.errors import UserError
from shards.storage import LocalStorage, open_storage
from shards.stream import told_of_lost_workers
from shards.view import View
from xmodal.training.agreement import facts_of_run, require_agreement
from xmodal.training.checkpoint import Keep, load_checkpoint, save_checkpoint
from xmodal.training.config import TrainConfig
from xmodal.training.costs import PASSES, forward_flops, utilisation
from xmodal.training.engine import average_buffers, gradient_norm, loss_scale
from xmodal.training.feature_store import FeatureStore, backbone_fingerprint, open_feature_store
from xmodal.training.features import Features, features_of_splits
from xmodal.training.job import joined_ranks
from xmodal.training.mistakes import by_all, by_first, by_first_at_length
from xmodal.training.nonfinite import SkippedSteps, describe, gather_suspects, too_many
from xmodal.training.pictures import Pictures
from xmodal.training.pinned_config import pin_config
from xmodal.training.preparation import checked_view, prepare, start_engine
from xmodal.training.provenance import settings_without_paths
from xmodal.training.ranks import Ranks
from xmodal.training.step_log import StepClock, StepLog, StepSums, memory_gib
from xmodal.training.stop import StopRequest
from xmodal.training.trackers import TrackedRun, open_trackers
from xmodal.training.train_step import TrainStep
from xmodal.training.trained_student import averaged_student, export_trained
from xmodal.training.upload import Upload, fetch_checkpoints, wait_for_upload
from xmodal.training.validation import selection_cost, validate
from xmodal.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> bool:
    """Train a student and export it to `<output>/student`; goes on from the last complete checkpoint, if any.

    Returns False where it was asked to stop before its end, with a checkpoint, or before all of them were uploaded:
    started again, it does the rest. Raises UserError for a view, a student or sizes that do not go together, for a view
    of posts that were forgotten since it was made, and for ranks that do not agree, before the first step; where a rank
    cannot go on, after a checkpoint if all ranks can make one; and where another rank is lost.
    """
    # Before the ranks wait for each other: the likeliest mistakes are told at once.
    view = _begin(config)
    with joined_ranks(config.peer_timeout) as ranks:
        finished = _train(config, view, ranks)
        if finished and ranks.is_first:
            _stop_request(config).answered()  # which came too late: it is not for a run that goes on beyond the end
    return finished


def train_within(config: TrainConfig, ranks: Ranks) -> bool:
    """As `train`, by ranks that have met (`joined_ranks`) and may do more together: several runs, one after another."""
    return _train(config, _begin(config), ranks)


def _begin(config: TrainConfig) -> View:
    """What can be found out alone: the view, checked; the output folder is there then."""
    view = checked_view(config)
    LocalStorage(config.output, create=True)
    return view


def _stop_request(config: TrainConfig) -> StopRequest:
    return StopRequest(Path(config.stop_file or Path(config.output, "stop")))


def _train(config: TrainConfig, view: View, ranks: Ranks) -> bool:
    require_agreement(facts_of_run(config, view), ranks)
    stop = _stop_request(config)
    if config.upload:
        by_first_at_length(lambda: fetch_checkpoints(open_storage(config.upload, create=True), Path(config.output)))
    with told_of_lost_workers(), stop.listening(), Watchdog(config.step_timeout, ranks.rank) as watchdog:
        run = _Run(config, view, ranks, stop, watchdog)
        finished = run.run()
        run.engine.destroy()
    return finished


class _Run:
    """The loop: steps, epoch by epoch, with validations and checkpoints between them."""

    def __init__(self, config: TrainConfig, view: View, ranks: Ranks, stop: StopRequest, watchdog: Watchdog) -> None:
        self.config, self.view, self.ranks, self.stop, self.watchdog = config, view, ranks, stop, watchdog
        self.folder = Path(config.output)
        self.keep = Keep(last=config.keep_checkpoints, every_steps=config.keep_every_steps)
        prepared = prepare(config, view, ranks)
        self.spec, self.stream, self.loss, self.peak = prepared.spec, prepared.stream, prepared.loss, prepared.peak
        self.frozen_steps, self.total_steps = prepared.frozen_steps, prepared.total_steps
        # Before there is an engine: ZeRO 3 takes the weights out of the model.
        self.fingerprint = backbone_fingerprint(prepared.model, self.spec) if config.feature_folder else ""
        self.flops = forward_flops(prepared.model, self.spec.size) if self.peak and ranks.is_first else None
        self.engine = start_engine(config, prepared.model, prepared.deepspeed)
        self.pictures = Pictures(
            view,
            self.spec,
            config.stream,
            batch_size=self.engine.train_micro_batch_size_per_gpu(),
            ranks=ranks,
            device=self.engine.device,
            dtype=next(self.engine.module.parameters()).dtype,
            memory_format=prepared.memory_format,
        )
        self.train_step = TrainStep(self.engine, self.pictures, prepared)
        self.step = self.saved_step = 0
        self.run_id = secrets.token_hex(8)
        self.skipped = SkippedSteps(config.max_skipped_steps)
        self.sums = StepSums()
        self.validation_cost: float | None = None  # of the weights as they are
        self.features: dict[str, Features] = {}  # of train and val, while they are what is learned from
        # Of the first rank alone.
        self.log: StepLog | None = None
        self.upload: Upload | None = None

    def run(self) -> bool:
        """To the end, with an export, or to a stop request, with a checkpoint; whether nothing is left to be done."""
        is_resumed = self._resume()
        by_first(partial(self._open_records, is_resumed=is_resumed))
        needs_features = self.config.keep_features and self.step < min(self.frozen_steps, self.total_steps)
        finished = (not needs_features or self._keep_features()) and self._train_epochs()
        self.stream.close()
        if finished:
            self.watchdog.progress("the export of the student")
            export_trained(self.engine, self.config, self.view, self.spec, step=self.step)
        if self.log:
            self.log.close()
            if not finished:
                self.stop.answered()
                log.info("stopped at step %d of %d, as asked; start it again to go on", self.step, self.total_steps)
        is_uploaded = self._wait_for_upload(is_stopped=not finished)
        if finished and not is_uploaded and self.ranks.is_first:
            self.stop.answered()
        return finished and is_uploaded

    def _resume(self) -> bool:
        """Go on from the last complete checkpoint; whether there was one."""
        required = {"run_id": str, "stream": dict, "skipped": dict, "sums": dict}
        state = load_checkpoint(self.engine, self.folder / "checkpoints", ranks=self.ranks, required=required)
        if state is None:
            return False
        self.step, self.run_id = state["step"], state["run_id"]
        self.saved_step = self.step
        self.stream.load_state_dict(state["stream"])
        self.skipped.load_state_dict(state["skipped"])
        self.sums.load_state_dict(state["sums"])
        if self.step > self.total_steps:
            raise UserError(
                f"{self.folder}: at step {self.step} already, beyond the {self.total_steps} of max_steps",
                "raise max_steps, or give a new `output` folder",
            )
        log.info("resuming at step %d of %d", self.step, self.total_steps)
        return True

    def _open_records(self, *, is_resumed: bool) -> None:
        """What the first rank keeps of the run: its log, its config, and copies of its checkpoints."""
        tracked = TrackedRun(
            folder=self.folder,
            run_id=self.run_id,
            wandb_project=self.config.wandb_project,
            settings=settings_without_paths(asdict(self.config)),
            resumed_step=self.step,
        )
        trackers = open_trackers(self.config.trackers, tracked)
        self.log = StepLog(self.folder, resumed_step=self.step, trackers=trackers)
        if not is_resumed:
            pin_config(self.folder, self.config)
        if self.config.upload:
            self.upload = Upload(self.folder, open_storage(self.config.upload, create=True), self.keep)
            self.upload.start()  # of what was killed before
        log.info(
            "%d samples, %d steps of %d on %d ranks, ZeRO-%d, %s",
            self.stream.num_samples,
            self.total_steps,
            self.config.global_batch_size,
            self.ranks.world_size,
            self.engine.zero_optimization_stage(),
            self.pictures.dtype,
        )

    def _keep_features(self) -> bool:
        """Have the backbone look at all pictures once; the stream then needs to read none.

        False where any rank was asked to stop meanwhile.
        """

        def goes_on() -> bool:
            self.watchdog.progress("the features of all pictures")
            asked, _ = self.stop.agreed(self.ranks, self.engine.device, None)
            return not asked

        flip = self.config.augment.flip
        store = by_all(self._open_feature_store)
        features = features_of_splits(self.engine, self.pictures, flip=flip, goes_on=goes_on, store=store)
        if features is None:
            return False
        self.features = features
        self.stream.leave_out_pixels(~features["train"].known.numpy())
        return True

    def _open_feature_store(self) -> FeatureStore | None:
        """On the first rank, where features are to stay for other runs."""
        if not self.fingerprint or not self.ranks.is_first:
            return None
        config = self.config
        return open_feature_store(
            config.feature_folder, self.fingerprint, self.pictures.dtype, flip=config.augment.flip
        )

    def _train_epochs(self) -> bool:
        """To the end of the run, or to a stop request; whether it was the end."""
        while self.step < self.total_steps:
            if self.features and self.step >= self.frozen_steps:
                self.features = {}
                self.stream.read_pixels()
            epoch = self.stream.epoch
            if not self._train_epoch():
                return False
            self.watchdog.progress("validation")
            average_buffers(self.engine.module, self.ranks.world_size)
            self._validate(epoch)
            if self._is_saved_after(epoch):
                self._save()
        return True

    def _train_epoch(self) -> bool:
        """Steps to the end of the epoch, or of the run, or to a stop request; False for that."""
        clock, batches = StepClock(), iter(self.stream)
        while True:
            self.watchdog.progress(f"step {self.step + 1}")
            micro_batches = self._next_step(batches)
            if micro_batches is None:
                return False
            clock.data_arrived(sum(len(batch.rows) for batch in micro_batches))
            rate, losses = self.train_step.take(self.step, micro_batches, self.features.get("train"))
            self.sums.add(micro_batches, losses)
            self.step += 1
            self.validation_cost = None
            suspects = self._count_if_skipped(micro_batches, losses)
            clock.step_done()
            is_end = self.stream.step == 0 or self.step == self.total_steps
            if is_end or self.step % self.config.log_every_steps == 0:
                self._log_steps(clock, rate)
            if self.skipped.are_too_many():
                self._give_up(too_many(self.skipped.in_a_row, self.step, suspects))
            if is_end:
                return True
            every = self.config.checkpoint_every_steps
            if every and self.step % every == 0:
                self._save()
                clock.step_done()

    def _next_step(self, batches: Iterator[list[Batch]]) -> list[Batch] | None:
        """The micro-batches of the next step; None, after a checkpoint, where any rank was asked to stop.

        Raises UserError on all ranks, after a checkpoint, where one of them has no batches.
        """
        done, failure = self.stream.state_dict(), None
        try:
            with told_of_lost_workers():
                micro_batches = next(batches)
        except UserError as error:
            failure = error
        # Once a step, and here, where all ranks have the weights of the last step and none waits for another's
        # gradients as yet.
        asked, failure = self.stop.agreed(self.ranks, self.engine.device, failure)
        if not asked and not failure:
            return micro_batches
        self.stream.load_state_dict(done)
        if failure:
            self._give_up(failure)
        self._save()
        return None

    def _give_up(self, failure: UserError) -> NoReturn:
        """Raise it, after a checkpoint: all ranks must call it."""
        # Besides those that would be kept: what is wrong may have been so for longer.
        self._save(besides=1)
        self._wait_for_upload()
        raise failure

    def _count_if_skipped(self, batches: list[Batch], losses: list[torch.Tensor]) -> str:
        """See whether the step changed the weights; if it did not, say which samples it had."""
        self.skipped.add(was_applied=self.engine.was_step_applied())
        if not self.skipped.in_a_row:
            return ""
        keys = self.view.split("train").rows["key"]
        rows = [row for batch in batches for row in batch.rows.tolist()]
        found = gather_suspects(torch.cat(losses), [keys[row].as_py() for row in rows], self.ranks)
        suspects = describe(*found, loss_scale(self.engine))
        if self.ranks.is_first:
            log.warning("step %d was skipped: %s", self.step, suspects)
        return suspects

    def _log_steps(self, clock: StepClock, rate: float) -> None:
        sums, times = self.sums.read(self.ranks.world_size), clock.read()
        if self.log:
            values = {
                "loss": sums["loss"],
                "grad_norm": gradient_norm(self.engine),
                "loss_scale": loss_scale(self.engine),
                "lr": rate,
                "images_per_second": times["images_per_second"] * self.ranks.world_size,
                "mfu": self._mfu(times["images_per_second"]),
                "data_wait_share": times["data_wait_share"],
                "memory_gib": memory_gib(),
                "damaged": sums["damaged"],
                "skipped": self.skipped.total,
                "samples": sums["samples"],
            }
            self.log.write("step", self.step, values)

    def _mfu(self, images_per_second: float) -> float | None:
        """Of this rank, as all others; None where the device's peak is not known, or the head alone computes."""
        if not self.peak or not self.flops or self.features:
            return None
        # A frozen backbone has a forward pass alone.
        passes = PASSES if self.step > self.frozen_steps else 1
        return utilisation(images_per_second, passes * self.flops, self.peak)

    def _validate(self, epoch: int) -> None:
        """Against the teacher, on the val split, if it has samples.

        Raises UserError where a student is to be selected by them, and none can be decoded.
        """
        if not self.pictures.num_samples("val"):
            return
        has_average = self.config.optimizer.ema_decay
        student = averaged_student(self.engine, self.config.student) if has_average else self.engine
        values = validate(student, self.pictures, self.loss, self.features.get("val"))
        if not values and self.config.select != "last":
            self._give_up(
                UserError(
                    f"{self.config.view}: no picture of its val split, to select the best by, can be decoded",
                    "see `xmodal verify` of its datasets, or set select=last",
                )
            )
        if self.log and values:
            self.log.write("validation", self.step, {"epoch": epoch, **values})
        self.validation_cost = selection_cost(values, self.config.select)

    def _is_saved_after(self, epoch: int) -> bool:
        """Whether the end of this epoch, or of the run in it, is one after which a checkpoint is made."""
        every_epochs, every_steps = self.config.checkpoint_every_epochs, self.config.checkpoint_every_steps
        if self.step == self.total_steps:
            # Whenever any are made: more steps go on from it, and `xmodal export` gives the student of the run's end.
            return bool(every_epochs or every_steps)
        of_epochs = every_epochs and (epoch + 1) % every_epochs == 0
        return bool(of_epochs or (every_steps and self.step % every_steps == 0))

    def _save(self, *, besides: int = 0) -> None:
        """Make a checkpoint, unless there is one of this step; `besides`: so many more of the newest are kept."""
        if self.step == self.saved_step:
            return
        self.watchdog.progress("saving a checkpoint")
        save_checkpoint(
            self.engine,
            self.folder / "checkpoints",
            step=self.step,
            state={
                "stream": self.stream.state_dict(),
                "skipped": self.skipped.state_dict(),
                "sums": self.sums.state_dict(self.ranks.world_size),
                "validation_cost": self.validation_cost,
                "run_id": self.run_id,  # the first rank's is kept
            },
            ranks=self.ranks,
            keep=replace(self.keep, last=self.keep.last + besides),
        )
        self.saved_step = self.step
        if self.upload:
            self.upload.start()

    def _wait_for_upload(self, *, is_stopped: bool = False) -> bool:
        """Whether all is uploaded: a run that `is_stopped`, or is asked to stop now, waits for `upload_grace` alone."""
        if not self.config.upload:
            return True

        def is_asked() -> bool:
            return is_stopped or self.stop.is_asked(self.ranks)

        progress = partial(self.watchdog.progress, "the upload of checkpoints")
        return wait_for_upload(self.upload, self.engine.device, progress, is_asked, self.config.upload_grace)
