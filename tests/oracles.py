"""Slow references, one row at a time in plain Python, written from the formulas of `docs` and not from the package.

A row is a list; sets of positions are frozensets. A *law* is a dict from each possible set to its probability, found by
going through every subset, so rows have to be short.
"""

import math
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np

Law = dict[frozenset, float]

# ---- what a denoiser believes ------------------------------------------------------------------------------------


def beliefs(logits: list[float], mask_token_id: int) -> tuple[list[float], float, float, float]:
    """(probabilities, c, m, H) of one position, the mask token ruled out."""
    highest = max(x for token, x in enumerate(logits) if token != mask_token_id)
    weights = [0.0 if token == mask_token_id else math.exp(x - highest) for token, x in enumerate(logits)]
    probs = [w / sum(weights) for w in weights]
    first, second = sorted(probs, reverse=True)[:2]
    return probs, first, first - second, -sum(p * math.log(p) for p in probs if p > 0)


# ---- unmasking rules: the positions of one step ------------------------------------------------------------------


def eligible(masked: list[bool]) -> list[int]:
    return [i for i, is_masked in enumerate(masked) if is_masked]


def quota(masked: list[bool], steps_left: int) -> int:
    return math.ceil(len(eligible(masked)) / steps_left)


def top_prob(c: list[float], masked: list[bool], steps_left: int) -> frozenset:
    return frozenset(sorted(eligible(masked), key=lambda i: (-c[i], i))[: quota(masked, steps_left)])


def margin(m: list[float], masked: list[bool], steps_left: int) -> frozenset:
    return frozenset(sorted(eligible(masked), key=lambda i: (-m[i], i))[: quota(masked, steps_left)])


def entropy(h: list[float], masked: list[bool], steps_left: int) -> frozenset:
    return frozenset(sorted(eligible(masked), key=lambda i: (h[i], i))[: quota(masked, steps_left)])


def threshold(c: list[float], masked: list[bool], tau: float) -> frozenset:
    chosen = [i for i in eligible(masked) if c[i] >= tau]
    return frozenset(chosen or sorted(eligible(masked), key=lambda i: (-c[i], i))[:1])


def entropy_bound(h: list[float], masked: list[bool], gamma: float) -> frozenset:
    rising = sorted(eligible(masked), key=lambda i: (h[i], i))
    sizes = [k for k in range(1, len(rising) + 1) if cost([h[i] for i in rising[:k]]) <= gamma]
    return frozenset(rising[: max(sizes, default=0)])


def cost(entropies: list[float]) -> float:
    return math.fsum([*entropies, -max(entropies)])


def left_to_right(masked: list[bool], steps_left: int) -> frozenset:
    return frozenset(eligible(masked)[: quota(masked, steps_left)])


def factor(c: list[float], masked: list[bool], f: float) -> frozenset:
    falling = sorted(eligible(masked), key=lambda i: (-c[i], i))
    sizes = [n for n in range(1, len(falling) + 1) if (n + 1) * (1 - c[falling[n - 1]]) < f]
    return frozenset(falling[: max(sizes, default=1)])


def frechet(c: list[float], masked: list[bool], margin: float) -> frozenset:
    falling = sorted(eligible(masked), key=lambda i: (-c[i], i))

    def score(n: int) -> float:
        return math.fsum(c[i] for i in falling[:n]) - (n - 1) - (1 - c[falling[n - 1]])

    sizes = [n for n in range(1, len(falling) + 1) if score(n) > margin]
    return frozenset(falling[: max(sizes, default=1)])


def local_leap(c: list[float], masked: list[bool], tau: float, relaxed: float, radius: int) -> frozenset:
    anchors = [i for i in eligible(masked) if c[i] >= tau]
    near = [i for i in eligible(masked) if c[i] >= relaxed and any(abs(i - j) <= radius for j in anchors)]
    return frozenset(anchors + near or sorted(eligible(masked), key=lambda i: (-c[i], i))[:1])


def independent_set(c: list[float], attention: list[list[float]], masked: list[bool], tau: float) -> frozenset:
    """Of the graph on the masked positions, by falling confidence times degree."""
    nodes = eligible(masked)
    edge = {(i, j): (attention[i][j] + attention[j][i]) / 2 for i in nodes for j in nodes if i != j}
    degree = {i: math.fsum(edge[i, j] for j in nodes if j != i) for i in nodes}
    taken: list[int] = []
    for i in sorted(nodes, key=lambda i: (-c[i] * degree[i], i)):
        if all(edge[i, j] <= tau for j in taken):
            taken.append(i)
    return frozenset(taken)


def klass(steps: list[list[list[float]]], masked: list[bool], tau: float, epsilon: float, history: int) -> frozenset:
    """`steps[t][i]`: the probabilities at position i at step t; what the rule takes at the last of these steps."""
    now = len(steps) - 1
    c = [max(p) for p in steps[now]]

    def stable(i: int) -> bool:
        return now >= history and all(
            divergence(steps[t][i], steps[t - 1][i]) < epsilon for t in range(now - history + 1, now + 1)
        )

    chosen = [i for i in eligible(masked) if c[i] > tau and stable(i)]
    return frozenset(chosen or sorted(eligible(masked), key=lambda i: (-c[i], i))[:1])


def divergence(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def position_scores(probs: list[list[float]], decay: float, clip: float, f: list[float]) -> list[float]:
    """The rule takes the positions with the largest ones."""
    scores = []
    for i, p in enumerate(probs):
        frequency = f[p.index(max(p))]
        rarity = -math.log(frequency) if frequency > 0 else math.inf
        scores.append(math.exp(-decay * i) * min(max(p) * rarity, clip))
    return scores


def dilated_groups(length: int, base: int) -> list[list[int]]:
    """The groups of one canvas; a group may be empty."""
    count = 0
    while base**count < length:
        count += 1
    groups, taken = [], set()
    for t in range(1, max(count, 1) + 1):
        stride = max(1, length // base**t)
        groups.append([i for i in range(length) if i % stride == 0 and i not in taken])
        taken |= set(groups[-1])
    return groups


def dilated(masked: list[bool], base: int) -> frozenset:
    waiting = [frozenset(group) & set(eligible(masked)) for group in dilated_groups(len(masked), base)]
    return next((group for group in waiting if group), frozenset())


def iid(masked: list[bool], steps_left: int) -> Law:
    """Each position with probability 1 / steps left, given that at least one is."""
    return conditioned({i: 1 / steps_left for i in eligible(masked)})


@lru_cache
def random_sizes(masked: int, steps_left: int) -> tuple[dict[int, float], float]:
    """(law of the size of a step, share of the total correlation that is lost), from what the law is defined by.

    With g_i = h_0 - h_i, a step of s loses sum_{i<s} g_i, and what follows share(m - s) of sum_{i>=s} (g_i - g_s): of
    the mean over s, each g_i has the same coefficient, and that is the share. A linear system in p(s) and the share.
    """
    if steps_left >= masked:
        return {1: 1.0}, 0.0
    if steps_left == 1:
        return {masked: 1.0}, 1.0
    most = masked - steps_left + 1
    after = {s: random_sizes(masked - s, steps_left - 1)[1] for s in range(1, most + 1)}
    rows = [[1.0] * most + [0.0]]
    for i in range(1, most + 1):
        row = [1.0 if s > i else after[s] for s in range(1, most + 1)]
        row[i - 1] -= after[i] * (masked - i)
        rows.append([*row, -1.0])
    *law, share = np.linalg.solve(rows, [1.0] + [0.0] * most).tolist()
    return dict(enumerate(law, 1)), share


# ---- rules that remask ------------------------------------------------------------------------------------------


def remdm(
    masked: list[bool], psi: list[float], budget: int, steps_left: int, schedule: str, eta: float, confidence: bool
) -> tuple[Law, dict[int, float]]:
    """(law of the positions to unmask, probability to remask each unmasked position), from alpha_t = 1 - t."""
    alpha_t, alpha_s = 1 - steps_left / budget, 1 - (steps_left - 1) / budget
    sigma_max = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
    sigma = min(eta, sigma_max) if schedule == "cap" else eta * sigma_max
    others = [i for i, is_masked in enumerate(masked) if not is_masked]
    if confidence:
        total = math.fsum(math.exp(-psi[j]) for j in others)
        remask = {i: sigma * math.exp(-psi[i]) / total for i in others}
        sigma = 0.0  # of a masked position
    else:
        remask = dict.fromkeys(others, sigma)
    unmask = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    return conditioned({i: min(unmask, 1.0) for i in eligible(masked)}), remask


def wino(
    c: list[float], now: list[float], masked: list[bool], drafted_before: int, tau_1: float, tau_2: float
) -> tuple[frozenset, frozenset]:
    """(drafted, remasked); `now[i]` is the present probability of the token at i."""
    drafted = [i for i in eligible(masked) if c[i] > tau_1] or sorted(eligible(masked), key=lambda i: (-c[i], i))[:1]
    doubtful = sorted((i for i, m in enumerate(masked) if not m and now[i] < tau_2), key=lambda i: (now[i], i))
    return frozenset(drafted), frozenset(doubtful[: max(drafted_before - 1, 0)] if len(drafted) > 1 else [])


# ---- laws over subsets -------------------------------------------------------------------------------------------


def subsets(positions: list[int]) -> list[frozenset]:
    return [frozenset(s) for size in range(len(positions) + 1) for s in combinations(positions, size)]


def independent(success: dict[int, float], failure: dict[int, float] | None = None) -> Law:
    """Independent Bernoullis. `failure` where 1 - success would lose digits."""
    failure = failure or {i: 1 - p for i, p in success.items()}
    return {s: math.prod(success[i] if i in s else failure[i] for i in success) for s in subsets(list(success))}


def conditioned(success: dict[int, float], failure: dict[int, float] | None = None) -> Law:
    """Independent Bernoullis, given at least one success. Without positions, the empty set is certain."""
    law = independent(success, failure)
    if not success:
        return law
    del law[frozenset()]
    total = math.fsum(law.values())
    return {s: p / total for s, p in law.items()}


def max_normalized(scores: list[float], masked: list[bool], temperature: float) -> Law:
    best = max((scores[i] for i in eligible(masked)), default=0.0)
    gaps = {i: (scores[i] - best) / temperature for i in eligible(masked)}
    return independent({i: math.exp(g) for i, g in gaps.items()}, {i: -math.expm1(g) for i, g in gaps.items()})


def non_empty(logits: list[float], masked: list[bool]) -> Law:
    return conditioned(
        {i: 1 / (1 + math.exp(-logits[i])) for i in eligible(masked)},
        {i: 1 / (1 + math.exp(logits[i])) for i in eligible(masked)},
    )


def counted(weights: list[float], which, scores: list[float], masked: list[bool]) -> Law:
    """`weights[k - 1]`: log-weight of k positions; `which(scores, k)` the law of sets of k, scores a dict."""
    inside = {i: scores[i] for i in eligible(masked)}
    if not inside:
        return {frozenset(): 1.0}
    chances = [math.exp(weights[k - 1]) for k in range(1, len(inside) + 1)]
    law = {}
    for k, chance in enumerate(chances, 1):
        law |= {s: p * chance / math.fsum(chances) for s, p in which(inside, k).items()}
    return law


def conditional_bernoulli(scores: dict[int, float], k: int) -> Law:
    weights = {s: math.exp(math.fsum(scores[i] for i in s)) for s in subsets(list(scores)) if len(s) == k}
    return {s: w / math.fsum(weights.values()) for s, w in weights.items()}


def regret_cost(i: int, taken, logits: list[float], w: list[float], a: list[list[float]]) -> float:
    doubt = 1 / (1 + math.exp(min(logits[i], 700.0)))
    return w[i] * (len(taken) + 2) * doubt + math.fsum(a[i][j] for j in taken)


def bounded_regret(
    logits: list[float], w: list[float], a: list[list[float]], masked: list[bool], bound: float
) -> frozenset:
    taken: list[int] = []
    for i in sorted(eligible(masked), key=lambda i: (-logits[i], i)):
        if not taken or regret_cost(i, taken, logits, w, a) < bound:
            taken.append(i)
    return frozenset(taken)


def random_regret(
    logits: list[float],
    w: list[float],
    a: list[list[float]],
    masked: list[bool],
    bound: float,
    tau: float,
    where: list[bool] | None = None,
    sure: list[bool] | None = None,
) -> Law:
    """Goes through both answers at each position visited; the empty set is then taken out."""
    law = {frozenset(): 1.0}
    for i in sorted(eligible(masked), key=lambda i: (-logits[i], i)):
        after: Law = {}
        for accepted, p in law.items():
            chance = 1 / (1 + (max(regret_cost(i, accepted, logits, w, a), 1e-8) / bound) ** (1 / tau))
            if where is not None and not where[i]:
                chance = float(sure[i])
            after[accepted | {i}] = p * chance
            after[accepted] = after.get(accepted, 0.0) + p * (1 - chance)
        law = after
    if any(masked):
        del law[frozenset()]
    return {s: p / math.fsum(law.values()) for s, p in law.items()}


def greedy(law: Law, size: int) -> float:
    """The probability of the likeliest set of that size."""
    return max(p for s, p in law.items() if len(s) == size)


def marginals(law: Law, length: int) -> list[float]:
    return [math.fsum(p for s, p in law.items() if i in s) for i in range(length)]


def entropy_of(law: Law) -> float:
    return -math.fsum(p * math.log(p) for p in law.values() if p > 0)


def kl(q: Law, p: Law) -> float:
    return math.fsum(w * math.log(w / p[s]) for s, w in q.items() if w > 0)


# ---- is a sample from this law? ----------------------------------------------------------------------------------


def chi_square_excess(counts: dict, law: dict) -> float:
    """Pearson's statistic in standard deviations above its mean; outcomes that are expected less than 5 times pooled.

    Infinite when something happened that cannot.
    """
    total = sum(counts.values())
    if any(law.get(outcome, 0.0) == 0.0 for outcome in counts):
        return math.inf
    cells = [(counts.get(s, 0), p * total) for s, p in law.items() if p * total >= 5]
    rest = (total - sum(seen for seen, _ in cells), total - sum(expected for _, expected in cells))
    cells += [rest] if rest[1] >= 5 else []
    freedom = max(len(cells) - 1, 1)
    return (sum((seen - expected) ** 2 / expected for seen, expected in cells) - freedom) / math.sqrt(2 * freedom)


# ---- orders: `order[i]` is the step that unmasked position i, 0 where none did -----------------------------------


def unmasked_one_by_one(order: list[int]) -> list[int]:
    """p_1, p_2, ...: the positions by step, those of one step from left to right."""
    return sorted((i for i, step in enumerate(order) if step), key=lambda i: (order[i], i))


def kendall_tau(order: list[int]) -> float:
    """tau-b: (concordant - discordant) / root of (pairs * pairs that are no tie); nan without the latter."""
    pairs = list(combinations([step for step in order if step], 2))
    rising, falling = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return (rising - falling) / math.sqrt(len(pairs) * (rising + falling)) if rising + falling else math.nan


def local_ar_ness(order: list[int], k: int) -> float:
    sequence = unmasked_one_by_one(order)
    extended = [*range(-k, 0), *sequence]  # the prompt, read from left to right
    hits = [set(extended[t : t + k]) == {p - i for i in range(1, k + 1)} for t, p in enumerate(sequence)]
    return sum(hits) / len(hits) if hits else math.nan


def global_ar_ness(order: list[int], k: int) -> float:
    masked, hits = sorted(unmasked_one_by_one(order)), []
    for position in unmasked_one_by_one(order):
        hits.append(position in masked[:k])
        masked.remove(position)
    return sum(hits) / len(hits) if hits else math.nan


def aup(points: list[tuple[float, float]], best: float, alpha: float) -> float:
    """Of (rho, y) with rising rho."""
    points = [(rho, y) for rho, y in points if y >= points[0][1] - 5]

    def weighted(y: float) -> float:
        return y * min(math.exp(-alpha * (1 - y / best)), 1)

    area = points[0][0] * points[0][1]
    for (rho_before, y_before), (rho, y) in pairwise(points):
        area += 0.5 * (rho - rho_before) * (weighted(y) + weighted(y_before))
    return area
