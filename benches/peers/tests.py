"""The pure parts of benches/side-by-side.py: nothing is built, downloaded or measured."""

import io
import struct
import unittest
import xml.dom.minidom

from . import chrysalis, gguf, llama, plot, process, report, rows


def state(rounds=3):
    """A campaign of one model: ours is 2 x ik, candle fails, the machine is a little different in each round."""
    settings = rows.Settings((128,), (0,), (1, 4), 64)
    systems = {"chrysalis": {"version": "1"}, "ik_llama.cpp": {"version": "2"}, "candle": {"problem": "not built: no"}}
    runs = []
    for number in range(1, rounds + 1):
        for job in settings.jobs():
            same = {"round": number, "model": "m", "shape": [job.prompt, job.generate, job.batch], "joules": None}
            limits = {"prefill": 1000.0 * number, "decode": 100.0 * number * job.batch}
            ours = {"prefill": 500.0 * number, "decode": 50.0 * number, "load_s": 0.5, "resident_bytes": 2 << 20}
            peer = {"prefill": 250.0 * number, "decode": 25.0 * number, "load_s": 1.5, "resident_bytes": 3 << 20}
            runs.append({**same, "system": "chrysalis", **ours, "limits": limits})
            runs.append({**same, "system": "ik_llama.cpp", **peer})
    runs.append({"round": 1, "model": "m", "system": "candle", "shape": [1, 64, 1], "error": "too <small> & old"})
    return {
        "date": "2026-01-01", "commit": "abc", "machine": "a < b", "systems": systems, "trials": [], "runs": runs,
        "settings": {**vars(settings), "rounds": rounds, "threads": 2},
        "models": {"m": {"title": "M & M", "chosen": {"ik_llama.cpp": {"one sequence": "flash", "many": "plain"}}}},
    }


class Pure(unittest.TestCase):
    def test_repeats_become_their_median(self):
        text = 'noise\n{"load_s": 0.5, "prefill": [1, 9, 2], "decode": [4, 2]}\n'
        self.assertEqual(llama.medians(text), {"load_s": 0.5, "prefill": 2, "decode": 3})

    def test_a_limit_is_the_rate_over_its_share(self):
        row = {"decode_tokens_per_s": 30.0, "decode_share_of_limit": 0.25}
        self.assertEqual(chrysalis.limit(row, "decode"), 120.0)
        self.assertEqual(report.share(60.0, chrysalis.limit(row, "decode")), 0.5)
        self.assertEqual(chrysalis.limit({**row, "decode_limit_tokens_per_s": 121.0}, "decode"), 121.0)
        self.assertIsNone(chrysalis.limit({"decode_tokens_per_s": 0.0, "decode_share_of_limit": 0.0}, "decode"))

    def test_additions_to_our_report_do_no_harm(self):
        text = """{"device": "d", "new": 1, "load_seconds": 2, "memory": {"resident_bytes": 5},
            "rows": [{"prefill_tokens_per_s": 10, "another": [], "decode_tokens_per_s": 4,
                "prefill_share_of_limit": 0.5, "decode_share_of_limit": 0.25}]}"""
        found = chrysalis.Chrysalis.parse(None, text)
        self.assertEqual(found["limits"], {"prefill": 20.0, "decode": 16.0})
        self.assertEqual((found["prefill"], found["decode"], found["load_s"]), (10, 4, 2))
        self.assertEqual(found["resident_bytes"], 5)

    def test_ratios_are_of_rounds_that_have_both(self):
        self.assertEqual(report.ratios({1: 4.0, 2: 9.0, 3: 5.0}, {1: 2.0, 3: 5.0, 4: 1.0}, True), [2.0, 1.0])
        self.assertEqual(report.ratios({1: 4.0}, {1: 2.0}, False), [0.5])

    def test_the_table_has_medians_shares_and_ratios(self):
        text = report.table(state())
        self.assertIn("| M & M | prefill 128 | 2000 | 1000 (50 %) | 500 (25 %) | 2.00 (2.00 to 2.00) | - | - |", text)
        self.assertIn("| M & M | batch 4 | 800 | 100 (12 %) | 50 (6 %) |", text)
        self.assertIn("candle: not built: no", text)
        self.assertIn("ik_llama.cpp: 2; flash (M & M one sequence); plain (M & M many)", text)
        self.assertIn("candle (prompt 1, batch 1): too <small> & old", text)
        widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        self.assertEqual(len(widths), 1)

    def test_less_is_better_for_load(self):
        quick = state(1)
        quick["runs"] = [{**run, "shape": [512, 64, 1]} for run in quick["runs"][:2]]
        self.assertIn("| load, s | - | 0.50 | 1.50 | 3.00 |", report.table(quick))
        self.assertIn("| resident, MiB | - | 2 | 3 | 1.50 |", report.table(quick))

    def test_an_empty_campaign_has_a_table_and_a_plot(self):
        empty = {**state(), "runs": []}
        self.assertIn("| M & M | prefill 128 | - | - | - | - | - | - |", report.table(empty))
        xml.dom.minidom.parseString(plot.svg(empty))

    def test_the_plot_is_well_formed_and_has_every_series(self):
        document = xml.dom.minidom.parseString(plot.svg(state()))
        shown = [node.firstChild.data for node in document.getElementsByTagName("text")]
        for word in ("M & M", "chrysalis", "ik_llama.cpp", plot.LIMIT, "sequences at once", "tokens/s"):
            self.assertIn(word, shown)
        self.assertNotIn("candle", shown)

    def test_ticks_hold_the_values_between_them(self):
        for low, high in ((1.0, 1.0), (3.0, 4.0), (99.0, 1001.0), (0.2, 30000.0)):
            ticks = plot.rate_ticks(low, high)
            self.assertTrue(ticks[0] <= max(low, 1) and ticks[-1] >= high, (low, high, ticks))

    def test_every_shape_is_run_once(self):
        jobs = rows.FULL.jobs()
        self.assertEqual(len(jobs), len(set(jobs)))
        self.assertEqual(len(jobs), 7)
        self.assertTrue(all(row.job in jobs for row in rows.FULL.rows()))

    def test_energy_survives_a_counter_that_wraps(self):
        self.assertEqual(process.spent({"p": [9_000_000, 9_999_999]}, {"p": [1_000_000, 9_999_999]}), 2.0)
        self.assertIsNone(process.spent({}, {}))

    def test_memory_is_that_of_the_last_third(self):
        self.assertEqual(process.settled([1, 900, 900, 900, 5, 6]), 5.5)
        self.assertIsNone(process.settled([]))

    def test_a_random_block_is_centred(self):
        pool = gguf.random_pool("q4_k")
        scale, minimum = struct.unpack("<ee", pool[:4])
        self.assertEqual((scale, minimum), (gguf.Q4_K_SCALE, gguf.Q4_K_MINIMUM))
        self.assertEqual(gguf.bytes_of((2048, 128256), "q4_k"), 2048 * 128256 // 256 * 144)
        out = io.BytesIO()
        gguf.write_values(out, "bf16", 10, gguf.random_pool("bf16"))
        words = struct.unpack("<5H", out.getvalue())
        self.assertTrue(all(word & 0x7F00 == 0x3C00 for word in words))

    def test_the_vocabulary_names_every_token_once(self):
        self.assertEqual(len(set(gguf.vocabulary())), gguf.VOCAB)
