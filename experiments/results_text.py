"""The words of docs/results.md around its tables."""

from __future__ import annotations

HEAD = """# Results

EARN's claims, checked on real data with models trained here. The tables and pictures of this page are made of
[results.json](results.json) by `python -m experiments.results`; [experiments.py](../python -m experiments) trains
and measures, [grid.py](../benchmarks/grid.py) says what. Every figure is by search over the whole catalog with 20
beams for every test user; weights are chosen by NDCG@10 on 2,000 validation users at the most. In none of these data
sets does anybody choose an item twice, so items of the history are left out of the lists (`earn train` and `earn
evaluate` do so with `--exclude-history`; the ablation `history-returns` says what it changes). Accuracies are means
over seeds; in parentheses stand the ends of a seed's 95 % bootstrap interval over users, averaged likewise."""

TWINS = """"To dense" is the difference, user by user, to the dense model of the same seed, with its paired interval:
an interval wholly below 0 would say that EARN is worse. What few users cannot tell apart may still differ, and users
are not the only chance: another seed moves `ml-100k`'s Recall@10 by up to .03, and where there is one seed no interval
knows of that. The validation users, who chose the epoch, are shown beside: on `games` they put the dense model before
EARN, the test users EARN before the dense model, so that pair says no more than a draw.

![Recall@10 of dense and EARN](pictures/twins.svg)

"""

BESIDE = """

The same as shares of the dense model's, beside the paper's with backbones of 7 billion parameters (its data sets are
split by time). "In batches" is here 64 users at once on a CPU, with the prompt's cache shared by all beams on both
sides; in the paper it is the largest batch that fits into a GPU, apparently with a copy of that cache for each beam:

"""

SWEEP = """The paper's rule of thumb is k = N/4. Its recall collapses below k = 4 of 32 (Llama) and 7 of 28 (Qwen2.5),
and little is gained beyond 13. This small model shows no such collapse on `ml-100k`: behind a single early layer it
ranks as well as the dense one. But for k = 2 there is one seed of each k, and what differs between them is no more
than the .03 by which seeds move k = 2.

![Recall@10 by the number of early layers](pictures/sweep.svg)

"""

SUGGESTED = """`earn analyze` looks at a dense model, before anything is trained as EARN. Its attention rule asks that
later layers look at little that a cut takes away; its cut rule, that cutting later layers off the history costs the
weights, as they are, at most half of what the cut above layer 1 does. "Good enough": no paired interval, of Recall@10
or NDCG@10, is wholly below the dense model. What came of it: the attention rule found no k in any of these models,
whose last layers all give nearly half of their attention or more to rows that a cut takes (models trained from scratch
have no sinks to speak of; the paper's are of pretrained ones). The cut rule asked for two layers more than were needed
where it can be checked, on the one model and seed of which several k were trained: training repairs what it counts as
lost. Its limit of one half was set with these models in view: a tenth had asked for 5 to 7.

"""

ABLATIONS = """The paper's are of LC-Rec on Beauty with Llama-7B; the last column is its Recall@10 as a share of its
whole EARN's. Of one seed and 943 users a few per cent up or down are chance. Its prefix register is worth little, and
so is ours. Its suffix register is worth three quarters of the recall, ours is not: without it the late layers here see
the prompt's last token, and training presses the history into that as well. What takes the register's place in the
paper is not said there.

![Recall@10 of each variant beside whole EARN's](pictures/ablations.svg)

"""

SPEED = """Both sides as fp32 bundles of seed 0 in ONNX Runtime on a CPU, taking turns. These models are so small that
the search around them is a good part of a request; [benchmarks.md](benchmarks.md) has larger shapes. "One request":
median milliseconds, dense to EARN, 20 beams; its cache holds the prompt once for all beams. "In batches" of 64 and
"one sequence's cache" are nearest to the paper's terms: its speed-ups are 2.6 to 3.8x, its caches 46 to 81 % smaller,
with prompts of 100 to 170 tokens on a GPU. The two sides of a row took turns, but rows were timed one after the other
on a machine that others shared: the same dense model takes 5.6 to 8.0 ms, so compare ratios, and those roughly.

"""

OWN = """With items of the history in the lists, and identifiers by LETTER's authors (which interactions those were
made of is not stated with them), ours: """

COMMANDS = """Minutes include validation. Trainings ran side by side, not always as many: minutes are rough.

"""

PUBLISHED = """Published on Beauty, leave-one-out, full ranking (arXiv 2305.05065, table 1; whether lists left the
history out is not said there), Recall@10: """

TUNING = """What was tried, all of it on EARN, seed 0, to be chosen by the validation users' NDCG@10; dense models got
the usual settings alone, so the best recipe has no dense twin yet. Also tried and thrown away: batches of histories of
like length (faster, and worse on validation users: NDCG@10 .0430 instead of .0457, one seed, with items of the history
in the lists; the code is gone, so no command repeats it). One seed's figures differ by chance: changes that are
smaller than the intervals say little.

What came of it: width, length and hidden dropout together give most, though hidden dropout alone harms the small
model. That one learns too little rather than too much by heart: without dropout of attention and with twice the steps
(batches of 32) it ranks a little better, with label smoothing worse. The mean of the last four epochs' weights was no
better than the best epoch, which was kept; windows of 40 items change nothing, for one history in twenty is longer
than 20. Still missing: width, length and dropout apart, the wider model without attention dropout and with batches of
32, other learning rates, more seeds.

"""

INT8 = """`experiments.py PRESET --quantize --only RUN` exports a trained checkpoint and quantizes the bundle. Test
users who were not calibrated on judge it, 1,000 at the most: 95 % of their best 20 items must stay, and NDCG@10 may
not fall significantly ([calibration.md](calibration.md)). By the same users it is found out what has to be kept finer
for that; what the bundle does to all test users stands beside.

"""

NOT_RUN = """The paper's own settings need GPUs that were not at hand: Llama-7B and Qwen2.5-7B at the largest batch
that fits into 80 GB, MovieLens-1M, HSTU. Prompts in words (`lcrec`) were trained on made-up data alone. Of the
presets:

"""
