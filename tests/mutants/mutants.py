"""The mutants: faults planted in the source, each with what must find it.

A patch replaces one piece of text that occurs exactly once in a file. `make test-mutants` applies each to a copy
of the tree, and trains a tiny run there or carries out a test.
"""

from __future__ import annotations

from dataclasses import dataclass

AUDIT = "audit"
"""`reptrain audit --level inputs` of the run folder, by the code without the mutant."""
AUDITOR = "independent auditor"
"""`tools/independent_audit.py --level inputs` of the run folder."""
REPLAY = "independent trainer"
"""`tests/format/replay.py` of the run folder."""
JUDGES = (AUDIT, AUDITOR, REPLAY)
STOPS = "the run stops"
"""The run ends with an error of its own."""
NOTHING = "nothing"


@dataclass(frozen=True)
class Mutant:
    """A fault."""

    name: str
    kind: str
    file: str
    """Relative to the tree."""
    old: str
    new: str
    caught_by: tuple[str, ...]
    """Judges or tests that must find it; NOTHING if none can."""
    run: str = "decoder"
    """Name in `tiny_runs.RUNS`; unused if only tests are named."""
    also: tuple[tuple[str, str], ...] = ()
    """Further replacements in the same file."""
    why: str = ""
    """For one that nothing finds: the reason."""

    @property
    def tests(self) -> list[str]:
        """Those of `caught_by` that are tests."""
        return [name for name in self.caught_by if name not in (*JUDGES, STOPS, NOTHING)]


_STEP = "reptrain/training/step.py"
_FOLDER = "reptrain/checkpoint/step_folder.py"
_EPOCHS = "reptrain/plan/epochs.py"
_SPANS = "reptrain/batch/objectives/spans.py"
_EXAMPLE = "reptrain/batch/objectives/example.py"
_VIEWS = "reptrain/batch/objectives/augmented_causal.py"
_MASKED = "reptrain/training/masked_inputs.py"
_LOADED_UNCHECKED = (
    ("    if manifest.state is not None and loaded != manifest.state:\n", "    if not loaded:\n"),
)

MUTANTS = [
    # What the windows digest alone does not see.
    Mutant(
        "token 100 becomes 101 before the engine", "inputs", _STEP,
        "    example = replace(example, inputs=inputs)\n",
        "    inputs = {k: v + (v == 100) if k == 'tokens_BT' else v for k, v in inputs.items()}\n"
        "    example = replace(example, inputs=inputs)\n",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "token 100 becomes 101 after the windows digest, in the objective", "inputs",
        "reptrain/batch/objectives/causal.py",
        "        targets_BL = batch.tokens_BL.masked_fill(~is_token_BL, IGNORE)\n",
        "        tokens_BL = batch.tokens_BL + (batch.tokens_BL == 100)\n"
        "        targets_BL = tokens_BL.masked_fill(~is_token_BL, IGNORE)\n",
        (AUDITOR, REPLAY),
    ),
    Mutant(
        "an input column overwritten in the model, after the input digest", "inputs",
        "reptrain/model/decoder.py",
        "        x_BTD = self.embedding(tokens_BT)\n",
        "        x_BTD = self.embedding(torch.cat([tokens_BT[:, :1], tokens_BT[:, :1], tokens_BT[:, 2:]], 1))\n",
        (REPLAY,),
    ),
    Mutant(
        "the last target of each row has weight 0", "targets", "reptrain/training/targets.py",
        "        weight_BT = torch.ones_like(example.targets_BT, dtype=torch.float32)\n",
        "        weight_BT = torch.ones_like(example.targets_BT, dtype=torch.float32)\n"
        "        weight_BT[:, -1] = 0\n",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "no target for the first token of a document", "targets", "reptrain/batch/objectives/causal.py",
        "        inputs = {\"tokens_BT\": inputs_BL, \"is_token_BT\": is_token_BL}\n",
        "        inputs = {\"tokens_BT\": inputs_BL, \"is_token_BT\": is_token_BL}\n"
        "        targets_BL = targets_BL.masked_fill(inputs_BL == self.start_id, IGNORE)\n",
        (AUDITOR, REPLAY),
    ),
    Mutant(
        "inputs not shifted: each position reads its own target", "targets", _EXAMPLE,
        "    before_BT = targets_BT.roll(1, dims=1)\n", "    before_BT = targets_BT.roll(0, dims=1)\n",
        (AUDITOR, REPLAY),
    ),
    Mutant(
        "prefix shorter by one position", "targets", "reptrain/batch/objectives/prefix_lm.py",
        "torch.where(batch.length_B > 0, split_B + 1, 0)", "torch.where(batch.length_B > 0, split_B, 0)",
        (AUDITOR, REPLAY), run="prefix, sparse",
    ),
    Mutant(
        "attention crosses documents", "inputs", _EXAMPLE,
        "    return (1 + is_end_BL.cumsum(1) - is_end_BL) * is_token_BL\n",
        "    return (is_end_BL >= 0) * is_token_BL.long()\n",
        (AUDITOR, REPLAY),
    ),
    # Data and order.
    Mutant(
        "parts of documents read one token too early", "data", "reptrain/store/mapped_shards.py",
        "        start_D = self._offsets[row_D] + offset_D\n",
        "        start_D = self._offsets[row_D] + np.maximum(offset_D - 1, 0)\n",
        (AUDIT, AUDITOR),
    ),
    Mutant(
        "documents in the order of the store, not shuffled", "data", "reptrain/plan/document_order.py",
        "        place = random.permute(index, count, order_key)\n", "        place = index\n", (AUDIT, AUDITOR),
    ),
    Mutant(
        "order shifted by one", "order", _EPOCHS,
        "            window = random.permute(position, per_epoch, self._order_key(epoch))\n",
        "            window = random.permute((position + 1) % per_epoch, per_epoch, self._order_key(epoch))\n",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "every epoch in the order of the first", "order", _EPOCHS,
        "random.key(self.seed, \"order\", epoch)", "random.key(self.seed, \"order\", 0 * epoch)",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "shifted windows with the offset of the first epoch", "order", _EPOCHS,
        "random.key(self.seed, \"cut\", epoch)", "random.key(self.seed, \"cut\", 0 * epoch)", (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "documents repacked as in the first epoch", "order", "reptrain/plan/repacked.py",
        "random.key(self._seed, \"repack\", epoch)", "random.key(self._seed, \"repack\", 0 * epoch)",
        (AUDIT, AUDITOR, REPLAY), run="repacked",
    ),
    Mutant(
        "sources interleaved in another order", "order", "reptrain/plan/interleaving.py",
        "    at = ((2 * local + 1) << 30)", "    at = ((2 * local) << 30)", (AUDIT, AUDITOR), run="mixture",
    ),
    # Ranks.
    Mutant(
        "neighboring ranks share a row", "ranks", "reptrain/plan/shard.py",
        "    return (rank * share + np.arange", "    return (rank * (share - 1) + np.arange",
        (AUDIT, AUDITOR, REPLAY), run="two ranks",
    ),
    Mutant(
        "gradients averaged over ranks instead of summed", "ranks", _STEP,
        "    scale = world.world_size / batch.loss_tokens\n", "    scale = 1 / batch.loss_tokens\n",
        (REPLAY,), run="two ranks",
    ),
    Mutant(
        "dropout masks keyed by the row of the micro-batch", "ranks", _STEP,
        "step=batch.step, row_B=rows.row_B)", "step=batch.step, row_B=torch.arange(len(rows.row_B)))",
        (REPLAY,),
    ),
    # Noise.
    Mutant(
        "noise of the first epoch in every epoch", "noise", _EXAMPLE,
        "        epoch_N = np.zeros_like(self.epoch_N) if frozen else self.epoch_N\n",
        "        epoch_N = np.zeros_like(self.epoch_N)\n", (AUDIT, AUDITOR), run="T5",
    ),
    Mutant(
        "kept and hidden spans drawn with one key", "noise", _SPANS,
        "(\"spans kept\", \"spans hidden\")", "(\"spans kept\", \"spans kept\")", (AUDIT, AUDITOR), run="T5",
    ),
    Mutant(
        "sentinels in the opposite order", "noise", _SPANS,
        "    hidden = spans_native.hide_spans(\n",
        "    sentinel_ids = sentinel_ids[::-1]\n    hidden = spans_native.hide_spans(\n",
        (AUDITOR, REPLAY), run="T5",
    ),
    Mutant(
        "dropout masks of step 0 in every step", "noise", "kernels/reptrain_kernels/counter.py",
        "fold_int(fold_int(0, seed), step)", "fold_int(fold_int(0, seed), 0)", (REPLAY,),
    ),
    # Accumulation, updates, clipping, schedule.
    Mutant(
        "the gradient of the second micro-batch is zero", "accumulation", _STEP,
        "        engine.backward(loss * finite, scale_wrt_gas=False)\n",
        "        engine.backward(loss * finite * (number != 2), scale_wrt_gas=False)\n", (REPLAY,),
    ),
    Mutant(
        "gradients divided by the number of micro-batches", "accumulation", _STEP,
        "        engine.backward(loss * finite, scale_wrt_gas=False)\n",
        "        engine.backward(loss * finite / len(batch.micro_batches), scale_wrt_gas=False)\n", (REPLAY,),
    ),
    Mutant(
        "the update of step 5 is lost", "accumulation", _STEP,
        "    engine.step()\n    return engine.get_global_grad_norm()",
        "    if engine.global_steps == 5:\n        engine.zero_grad()\n        engine.micro_steps += 1\n"
        "        engine.global_steps += 1\n        return norm, True\n"
        "    engine.step()\n    return engine.get_global_grad_norm()",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "no clipping", "clipping", "reptrain/distributed/deepspeed_config.py",
        "\"gradient_clipping\": config.optimizer.clip_grad_norm,", "\"gradient_clipping\": 0.0,", (REPLAY,),
    ),
    Mutant(
        "learning rate taken at the start of a step", "schedule", "reptrain/config/schedule.py",
        "    return learning_rate((before + after) / (2 * total), optimizer, schedule)\n",
        "    return learning_rate(before / total, optimizer, schedule)\n", (REPLAY,),
    ),
    Mutant(
        "no warm-up", "schedule", "reptrain/config/schedule.py",
        "    if done < warmup:\n", "    if done < 0:\n", (REPLAY,),
    ),
    Mutant(
        "Adam's betas exchanged", "optimizer", "reptrain/training/optimizers.py",
        "        betas=(config.beta1, config.beta2),\n        eps=config.eps,\n        fused=True,\n",
        "        betas=(config.beta2, config.beta1),\n        eps=config.eps,\n        fused=True,\n", (REPLAY,),
    ),
    Mutant(
        "weight decay applied to norms", "optimizer", "reptrain/model/init.py",
        "        {\"params\": not_decayed, \"decays\": False, \"weight_decay\": 0.0},\n",
        "        {\"params\": not_decayed, \"decays\": True, \"weight_decay\": 0.0},\n", (REPLAY,),
    ),
    Mutant(
        "label smoothing with the opposite sign", "loss",
        "kernels/reptrain_kernels/ops/linear_cross_entropy/reference.py",
        "(of_target - full.mean(-1))", "(full.mean(-1) - of_target)", (REPLAY,),
    ),
    Mutant(
        "the seed of the initial weights is ignored", "initial weights", "reptrain/model/init.py",
        "f\"{seed}/{name}\"", "f\"0/{name}\"", (REPLAY,),
    ),
    # Resuming.
    Mutant(
        "moments not loaded", "resume", _FOLDER,
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        "    wanted = [p._replace(views={'weight': p.views['weight']}) for p in wanted]\n"
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        (STOPS,), run="resumed",
    ),
    Mutant(
        "moments not loaded, and the state hash not compared", "resume", _FOLDER,
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        "    wanted = [p._replace(views={'weight': p.views['weight']}) for p in wanted]\n"
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        (AUDIT, AUDITOR, REPLAY), run="resumed", also=_LOADED_UNCHECKED,
    ),
    Mutant(
        "weights not loaded, and the state hash not compared", "resume", _FOLDER,
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        "    wanted = [p._replace(views={k: v for k, v in p.views.items() if k != 'weight'}) for p in wanted]\n"
        "    read_pieces([path / name for name in manifest.files], wanted)\n",
        (AUDIT, AUDITOR, REPLAY), run="resumed", also=_LOADED_UNCHECKED,
    ),
    Mutant(
        "Adam's step count reset, and the state hash not compared", "resume", _FOLDER,
        "    state.set_optimizer_steps(engine, manifest.optimizer_steps)\n", "    state.set_optimizer_steps(engine, 0)\n",
        (AUDIT, AUDITOR, REPLAY), run="resumed", also=_LOADED_UNCHECKED,
    ),
    Mutant(
        "a step skipped on resume", "resume", "reptrain/training/resume.py",
        "    return Resumed(newest.manifest.step if newest.manifest else 0, newest.damaged",
        "    return Resumed(newest.manifest.step + 1 if newest.manifest else 0, newest.damaged",
        (AUDIT, AUDITOR, REPLAY), run="resumed",
    ),
    # Branches.
    Mutant(
        "a branch copies the whole ledger of its parent", "branch", "reptrain/training/branch.py",
        "    ledger = (path / folder.ledger.path.name).read_bytes()\n",
        "    ledger = (source / folder.ledger.path.name).read_bytes()\n", (AUDIT, AUDITOR), run="branch",
    ),
    Mutant(
        "a branch copies the checkpoint of another step", "branch", "reptrain/training/branch.py",
        "    checkpoint.adopt(path, manifest, folder.checkpoints, records)\n",
        "    path = max(path.parent.glob('step-*'), key=lambda p: int(p.name[5:]))\n"
        "    manifest = checkpoint.intact_manifest(path).model_copy(update={'step': branch.step})\n"
        "    checkpoint.adopt(path, manifest, folder.checkpoints, records)\n", (STOPS,), run="branch",
    ),
    Mutant(
        "a branch from a run that differs before it", "branch", "reptrain/training/branch.py",
        "    if shared < branch.step:\n", "    if shared < 0:\n",
        ("tests/training/test_branch.py::test_branch_is_refused_from_a_run_that_differs_before_it",),
    ),
    # Averages.
    Mutant(
        "the decay of the average is one minus the configured decay", "EMA", "reptrain/checkpoint/weight_average.py",
        "else 1 - self._config.decay", "else self._config.decay", (REPLAY,),
    ),
    Mutant(
        "the average not loaded, and the state hash not compared", "EMA", _FOLDER,
        "        wanted, average.steps = average.pieces(wanted), manifest.averaged_steps\n",
        "        average.steps = manifest.averaged_steps\n", (AUDIT, AUDITOR, REPLAY), run="resumed", also=_LOADED_UNCHECKED,
    ),
    Mutant(
        "training continues with the averaged weights after an evaluation", "EMA",
        "reptrain/checkpoint/weight_average.py",
        "        finally:\n            self._swap()\n", "        finally:\n            pass\n", (REPLAY,),
    ),
    # Views, output masks, cyclic rates.
    Mutant(
        "targets of a view shifted by one token", "targets", _VIEWS,
        "        target_place_BL = column_L + skipped_B[:, None]\n",
        "        target_place_BL = column_L + skipped_B[:, None] + 1\n", (AUDIT, AUDITOR, REPLAY), run="views",
    ),
    Mutant(
        "reversed windows not reversed", "inputs", _VIEWS,
        "is_token_BL & is_reversed_B[:, None]", "is_token_BL & (view_B < 0)[:, None]",
        (AUDIT, AUDITOR, REPLAY), run="views",
    ),
    Mutant(
        "all views have the start token of the first view", "inputs", _VIEWS,
        "self.start_ids)[view_B][:, None]", "self.start_ids)[0 * view_B][:, None]",
        (AUDIT, AUDITOR, REPLAY), run="views",
    ),
    Mutant(
        "output masks drawn for each unit", "noise", "reptrain/model/dropout.py",
        "counter.dropout(x_BTD.new_ones(*x_BTD.shape[:2], 1), key, rate_2)",
        "counter.dropout(x_BTD.new_ones(*x_BTD.shape), key, rate_2)", (REPLAY,), run="views",
    ),
    Mutant(
        "one cycle of the learning rate instead of two", "schedule", "reptrain/config/schedule.py",
        "after_warmup * schedule.cycles % 1 if", "after_warmup % 1 if", (REPLAY,), run="views",
    ),
    Mutant(
        "weight decay falls with the learning rate", "schedule", "reptrain/config/schedule.py",
        "(schedule.weight_decay_ratio - 1) * share", "(schedule.weight_decay_ratio - 1) * (1 - share)",
        (REPLAY,), run="views",
    ),
    # Masked inputs.
    Mutant(
        "masked copies have the loss weight of their rows", "targets", _MASKED,
        "torch.cat([weight_BT, weight * weight_BT])", "torch.cat([weight_BT, weight_BT])",
        (AUDIT, AUDITOR, REPLAY), run="masked",
    ),
    Mutant(
        "masks drawn with the key of the input noise", "noise", _MASKED,
        "site_keys(context.key_B, 2 + number, 1)", "site_keys(context.key_B, number, 1)",
        (AUDIT, AUDITOR, REPLAY), run="masked",
    ),
    Mutant(
        "masked copies have the dropout of their rows", "noise", _MASKED,
        "_FIRST_MASKED_ROW = 2**40", "_FIRST_MASKED_ROW = 0", (REPLAY,), run="masked",
    ),
    Mutant(
        "masked copies have router losses", "sparse layers", _MASKED,
        "torch.cat([example.loss_tokens_B, nothing_B])", "torch.cat([example.loss_tokens_B] * 2)",
        (REPLAY,), run="masked",
    ),
    # Fine-tuning, whose audit shares the code of its examples.
    Mutant(
        "the input of an example is predicted too", "fine-tuning", "reptrain/tasks/pairs.py",
        "(next_T >= split_B[:, None]) & (next_T < length_B[:, None])",
        "(next_T >= 0 * split_B[:, None]) & (next_T < length_B[:, None])",
        ("tests/tasks/test_finetune.py::test_targets_stand_where_texts_are_written",),
    ),
    Mutant(
        "every epoch of a fine-tuning run in the order of the first", "fine-tuning", "reptrain/tasks/examples.py",
        "order=\"reshuffle\",", "order=\"same\",",
        ("tests/tasks/test_finetune.py::test_each_example_is_seen_in_each_epoch",),
    ),
    # Sparse layers and expert parallelism.
    Mutant(
        "router losses left out of the gradient", "sparse layers", _STEP,
        "            loss = loss + routing.loss_nats * scale\n", "            loss = loss + routing.loss_nats * 0\n",
        (REPLAY,), run="prefix, sparse",
    ),
    Mutant(
        "gates not normalized", "sparse layers", "reptrain/model/router.py",
        "            normalize=self.config.normalizes,\n", "            normalize=False,\n", (REPLAY,), run="prefix, sparse",
    ),
    Mutant(
        "each rank holds the experts of the other", "expert parallel", "reptrain/distributed/expert_parallel.py",
        "all_E.detach()[place * held : (place + 1) * held]",
        "all_E.detach().flip(0)[place * held : (place + 1) * held]",
        (REPLAY,), run="expert parallel",
    ),
    Mutant(
        "received tokens sorted by sender", "expert parallel", "reptrain/distributed/expert_parallel.py",
        "output_size=total).argsort(stable=True)", "output_size=total).argsort(stable=True).sort().values",
        (REPLAY,), run="expert parallel",
    ),
    Mutant(
        "attention dropout keyed by the heads of the first rank", "sequence parallel",
        "reptrain/distributed/sequence_parallel.py",
        "head_ABH=self.own_heads(keys.head_ABH, -1)", "head_ABH=keys.head_ABH.chunk(self._size, -1)[0]",
        (REPLAY,), run="sequence parallel",
    ),
    Mutant(
        "dropout keyed by the positions of the first rank", "sequence parallel", "reptrain/distributed/sequence_parallel.py",
        "        position_P = self.positions(device)\n",
        "        position_P = self.positions(device) - self._first\n",
        (REPLAY,), run="sequence parallel",
    ),
    Mutant(
        "shared windows counted by each rank", "sequence parallel", _STEP,
        "    once = int(trainer.world.counts_rows)\n", "    once = 1\n", (AUDIT, AUDITOR), run="sequence parallel",
    ),
    # Ledger and checkpoints.
    Mutant(
        "step 3 missing in the ledger", "ledger", "reptrain/training/recorder.py",
        "        step, tokens = batch.step, batch.tokens\n",
        "        step, tokens = batch.step, batch.tokens\n        if step == 3:\n            return\n", (AUDIT, AUDITOR),
    ),
    Mutant(
        "the windows digest of a micro-batch counted twice", "ledger", _STEP,
        "            once * batch_digest(rows),", "            2 * batch_digest(rows),",
        (AUDIT, AUDITOR),
    ),
    Mutant(
        "lines of the ledger not chained", "ledger", "reptrain/runs/ledger.py",
        "        self._head = line_hash(line)\n", "        self._head = line_hash(line[1:])\n", (AUDIT, AUDITOR),
    ),
    Mutant(
        "weights saved in bfloat16", "checkpoint", "reptrain/checkpoint/tensor_file.py",
        "tensor.values().detach().to(\"cpu\", dtype)",
        "tensor.values().detach().to(torch.bfloat16).to(\"cpu\", dtype)",
        (AUDIT, AUDITOR, REPLAY),
    ),
    Mutant(
        "moments saved under each other's name", "checkpoint", "reptrain/checkpoint/state_files.py",
        "StoredTensor(f\"{kind}:{p.name}@{p.start}\"",
        "StoredTensor(f\"{ {'exp_avg': 'exp_avg_sq', 'exp_avg_sq': 'exp_avg'}.get(kind, kind) }:{p.name}@{p.start}\"",
        (AUDIT, AUDITOR, REPLAY), run="two ranks",
    ),
    # Evaluation, which no replay covers.
    Mutant(
        "bytes of the text counted one percent too high", "evaluation", "reptrain/evaluation/score.py",
        "    return Score(nats, loss_tokens, text_bytes,", "    return Score(nats, loss_tokens, 1.01 * text_bytes,",
        ("tests/training/test_objective_runs.py::test_bits_per_byte_are_of_the_bytes_of_the_scored_windows",),
    ),
    Mutant(
        "noise of a score keyed by the run's seed", "evaluation", "reptrain/evaluation/sets.py",
        "noise_seed=int(store.fingerprint[:15], 16)", "noise_seed=config.seed",
        ("tests/training/test_objective_runs.py::"
         "test_sets_of_a_source_are_scored_under_equal_noise_and_samples_under_other",),
    ),
    Mutant(
        "evaluations without improvement not counted", "evaluation", "reptrain/training/early_stopping.py",
        "        self._without = 0 if is_better else self._without + 1\n", "        self._without = 0\n",
        ("tests/training/test_regularize.py::test_patience_ends_a_run_early_and_for_good",),
    ),
    Mutant(
        "state files not flushed to the disk", "checkpoint", "reptrain/checkpoint/tensor_file.py",
        "        file.flush()\n        os.fsync(file.fileno())\n    return FileSum(bytes=8 + len(header)",
        "        file.flush()\n    return FileSum(bytes=8 + len(header)",
        (NOTHING,), why="no test cuts the power.",
    ),
    Mutant(
        "throughput twice as high", "measurement", "reptrain/training/recorder.py",
        "            tokens_per_s=rate,\n", "            tokens_per_s=2 * rate,\n", (NOTHING,),
        why="the judges do not compare times, which a replay cannot reproduce.",
    ),
]  # fmt: skip
