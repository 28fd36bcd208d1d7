"""Range coding with lanes, symbol by symbol, in Python's integers."""

import math

SLOTS = 1 << 12


def frequencies(counts, unseen):
    """Counts as shares of 4096, rounded along the running sum of what is above one share."""
    counts = [int(n) for n in counts]
    if sum(counts) == 0:
        counts = [1] * len(counts)
    least = [1 if unseen or n else 0 for n in counts]
    spare = 19 - sum(counts).bit_length()
    counts = [n << spare if spare >= 0 else n >> -spare for n in counts]
    share = sum(counts) >> 12
    above = [max(n - share * m, 0) for n, m in zip(counts, least, strict=True)]
    rest, shares, running = SLOTS - sum(least), [], 0
    for n, m in zip(above, least, strict=True):
        ends = (running + n) * rest // sum(above)
        shares.append(m + ends - running * rest // sum(above))
        running += n
    return shares


def encode(tables, symbols, contexts):
    """(words, states) of symbols [steps][lanes], each with the table of its context."""
    lanes = len(symbols[0])
    states, words = [1 << 16] * lanes, []
    for row, chosen in zip(symbols[::-1], contexts[::-1], strict=True):
        written = []
        for lane in range(lanes):
            table, symbol, x = tables[chosen[lane]], row[lane], states[lane]
            f, c = table[symbol], sum(table[:symbol])
            if x >= f << 20:
                written.append(x & 0xFFFF)
                x >>= 16
            states[lane] = (x // f) * SLOTS + c + x % f
        words = written + words
    return words, states


def decode(tables, words, states, contexts):
    """The symbols, or None if the stream does not end as an encoded one does."""
    states, position, symbols = list(states), 0, []
    for chosen in contexts:
        row = []
        for lane, context in enumerate(chosen):
            table, x = tables[context], states[lane]
            slot, symbol, c = x % SLOTS, 0, 0
            while c + table[symbol] <= slot:
                c += table[symbol]
                symbol += 1
            x = table[symbol] * (x // SLOTS) + slot - c
            if x < 1 << 16:
                if position == len(words):
                    return None
                x = (x << 16) | words[position]
                position += 1
            states[lane] = x
            row.append(symbol)
        symbols.append(row)
    ended = position == len(words) and all(x == 1 << 16 for x in states)
    return symbols if ended else None


def bits(tables, symbols, contexts):
    """Information content of the symbols under the tables."""
    return sum(
        12 - math.log2(tables[context][symbol])
        for row, chosen in zip(symbols, contexts, strict=True)
        for symbol, context in zip(row, chosen, strict=True)
    )
