"""Interpolated modified Kneser-Ney over token ids, as a yardstick for a language model.

Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998, section 3.
"""

import numpy as np

BITS = 12  # of a token id in a packed n-gram; five of them fit in 64


class KneserNey:
    """n-gram tables as sorted arrays of packed codes; the last token is in the low bits."""

    def __init__(self, ids: np.ndarray, vocab: int, order: int = 5) -> None:
        assert vocab <= 1 << BITS
        assert order * BITS < 64
        self.vocab, self.order = vocab, order
        self.tables = []
        grams, counts = np.unique(packed(ids, order), return_counts=True)
        for n in range(order, 0, -1):
            self.tables.insert(0, self.table(grams, counts))
            # A lower order counts in how many different words' company the n-gram was seen.
            grams, counts = np.unique(grams & ((1 << BITS * (n - 1)) - 1), return_counts=True)

    @staticmethod
    def table(grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """n-grams, their discounted counts; contexts, their totals, the mass each leaves to lower orders."""
        n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]).clip(0)
        discount = np.minimum(discounts[np.minimum(counts, 3)], counts)
        contexts, first = np.unique(grams >> BITS, return_index=True)
        totals = np.add.reduceat(counts, first).astype(float)
        return grams, counts - discount, contexts, totals, np.add.reduceat(discount, first) / totals

    def bits(self, ids: np.ndarray) -> np.ndarray:
        """Bits of every token but the first, each given up to order - 1 tokens before it."""
        probability = np.full(len(ids) - 1, 1 / self.vocab)
        for n, (grams, kept, contexts, totals, left) in enumerate(self.tables, start=1):
            codes = packed(ids, n)[1 if n == 1 else 0 :]
            skipped = len(probability) - len(codes)
            context, known = lookup(contexts, codes >> BITS)
            gram, seen = lookup(grams, codes)
            own = np.where(seen, kept[gram], 0.0) / totals[context]
            lower = probability[skipped:]
            probability[skipped:] = np.where(known, own + left[context] * lower, lower)
        return -np.log2(probability)


def packed(ids: np.ndarray, n: int) -> np.ndarray:
    """The n-grams of `ids`, one for each position that has n tokens up to and with it."""
    ids = ids.astype(np.int64)
    codes = np.zeros(max(0, len(ids) - n + 1), np.int64)
    for k in range(n):
        codes = (codes << BITS) | ids[k : k + len(codes)]
    return codes


def lookup(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return at, table[at] == codes
