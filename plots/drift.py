"""The gain and the leak are one term: RLSD distils in the mean, whatever the reward says.

    python -m plots.drift [--quick]       runs/drift.jsonl and drift.png under --out

By the README's proposition, a token that all of a group share gets no push from RLVR, nor from an unsigned weight, but
lam sqrt(p (1 - p)) (w+ - w-) from Eq 15. Here: dose (verifier noise, eps_w, lambda) and response (accuracy over the
run, leakage); a control, RLVR + a decaying OPSD term; two cures; and the push itself, measured in one step of SGD.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F

import rlsd
from plots import study, variants

NOISES, CLIPS = (0.0, 0.3, 0.4, 0.5), (0.2, 1.0, 4.0)
COLOURS = {0.0: "#0072B2", 0.3: "#009E73", 0.4: "#D55E00", 0.5: "#000000"}
SCHEDULES = {"constant": 0, "falling": 60}
OTHERS = {"RLVR + OPSD, falling": (variants.plain_sum, 60), "unsigned, constant": (variants.unsigned, 0),
          "balanced, constant": (variants.balanced, 0), "balanced, falling": (variants.balanced, 60)}


def plan(flags) -> list[tuple]:
    runs = []
    for seed in range(1 if flags.quick else flags.seeds):
        for noise in (0.4,) if flags.quick else NOISES:
            settings = {"seed": seed, "digits": flags.digits, "steps": flags.steps, "evaluate_every": 20, "verifier_noise": noise}
            runs.append((f"RLVR, noise {noise}", rlsd.Config(mode="rlvr", **settings), rlsd.method_loss))
            for schedule, decay in SCHEDULES.items():
                for eps_w in (1.0,) if flags.quick else CLIPS:
                    config = rlsd.Config(mode="rlsd", eps_w=eps_w, lam=1.0, lam_decay=decay, **settings)
                    runs.append((f"RLSD, eps_w {eps_w}, {schedule}, noise {noise}", config, rlsd.method_loss))
            for name, (method, decay) in OTHERS.items():
                config = rlsd.Config(mode="rlsd", eps_w=1.0, lam=1.0, lam_decay=decay, **settings)
                runs.append((f"{name}, noise {noise}", config, method))
    return runs


def push(flags, problems: int = 48, coins: int = 64) -> list[dict]:
    """One small step of SGD on groups whose rewards are coins, A_t averaged over the coins: all that is left is the push.

    For every prefix and token that was sampled: how much log P_S rose per step size, and what the formula says of it. Its
    coefficient c is the mean of A_t over the group where the token was written; through the softmax of that prefix
    log P_S(v) rises by <e_v - P, sum_u c_u (e_u - P)>, up to what the weights behind the logits add.
    """
    config, rate, points = rlsd.Config(digits=flags.digits, eps_w=1.0, lam=1.0), 1e-3, []
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    generator, (exam, keys), group = torch.Generator().manual_seed(0), world.exam(), config.group_size
    for problem, key in list(zip(exam, keys))[:problems]:
        covered, opened = world.prompts([problem]), world.prompts([problem], [key])
        rollout = world.sample(base, covered, group, generator)
        tokens, student = rollout.tokens, copy.deepcopy(base)
        whole = rlsd.response_logp(student, covered, tokens)
        logp = rlsd.of_tokens(whole, tokens)
        with torch.no_grad():
            gain = rlsd.information_gain(rlsd.of_tokens(rlsd.response_logp(base, opened, tokens), tokens), logp)
        flips = [rlsd.group_advantage((torch.rand(group, generator=generator) < 0.5).float(), group) for _ in range(coins)]
        credit = sum(rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0) for advantage in flips) / coins
        rlsd.clipped_surrogate(logp, rollout.logp, credit, rollout.mask).backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= rate * parameter.grad
            rise = (rlsd.of_tokens(rlsd.response_logp(student, covered, tokens), tokens) - logp) / rate
        unit = F.one_hot(tokens, whole.shape[-1]) - whole.detach().exp()  # e_v - P of each token
        for position in range(tokens.shape[1]):
            prefixes, same = torch.unique(F.pad(tokens, (1, 0))[:, :position + 1], dim=0, return_inverse=True)
            written = rollout.mask[:, position] * credit[:, position] / group
            direction = torch.zeros(len(prefixes), whole.shape[-1]).index_add(0, same, written.unsqueeze(-1) * unit[:, position])
            formula = (unit[:, position] * direction[same]).sum(-1)
            for row in {(int(prefix), int(token)): row for row, (prefix, token) in enumerate(zip(same, tokens[:, position]))
                        if rollout.mask[row, position]}.values():
                points.append({"formula": round(float(formula[row]), 5), "rise": round(float(rise[row, position]), 4)})
    return points


def gain_and_leak(lines: list[dict], label: str, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed: mean accuracy over the run above RLVR's at the same noise, and the highest leakage."""
    label, rlvr = f"{label}, noise {noise}", study.curves(lines, "accuracy", f"RLVR, noise {noise}").mean(1)
    return study.curves(lines, "accuracy", label).mean(1) - rlvr, study.curves(lines, "leakage", label).max(1)


def table(lines: list[dict]) -> list[str]:
    """The README's rows: gain and leakage, means over seeds, a column a noise."""
    labels = dict.fromkeys(line["label"].rpartition(", noise ")[0] for line in lines)
    noises = sorted({line["config"]["verifier_noise"] for line in lines})
    return [f"| {label} | " + " | ".join("{:+.3f}; {:.3f}".format(*(values.mean() for values in gain_and_leak(lines, label, noise)))
                                         for noise in noises) + " |" for label in labels if label != "RLVR"]


def main() -> None:
    flags = study.arguments(__doc__, seeds=5)
    lines = study.run_all("drift", flags, plan(flags))
    points = push(flags)
    log = flags.out / "runs" / "drift-push.jsonl"
    study.write_lines(log, points)

    noises, clips = ((0.4,), (1.0,)) if flags.quick else (NOISES, CLIPS)
    print("gain over RLVR in mean accuracy over the run; highest leakage; a column a noise")
    print("\n".join(table(lines)))
    x, y = (np.array([point[key] for point in points]) for key in ("formula", "rise"))
    correlation = np.corrcoef(x, y)[0, 1] if len(points) > 2 else float("nan")
    strong = np.abs(x) > 0.05
    agree = (np.sign(x) == np.sign(y))[strong].mean() if strong.any() else float("nan")
    print(f"push: {len(points)} tokens, correlation {correlation:.2f}; of {strong.sum()} with a push over 0.05, the sign agrees in {agree:.1%}")

    figure, axes = study.panels(2, 2)
    ends = {}, {}
    for noise in noises:
        for schedule, style in (("constant", "--"), ("falling", "-")):
            both = [gain_and_leak(lines, f"RLSD, eps_w {eps_w}, {schedule}", noise) for eps_w in clips]
            for panel, which in zip(axes[0], (0, 1)):
                values = np.array([pair[which] for pair in both])
                across = [clip * (0.94 + 0.04 * noises.index(noise)) for clip in clips]  # side by side, or the bars would hide each other
                panel.plot(across, values.mean(1), style, marker="o", color=COLOURS[noise])
                panel.vlines(across, values.min(1), values.max(1), color=COLOURS[noise], linewidth=0.8, linestyle=style)
                if schedule == ("falling", "constant")[which]:
                    ends[which][f"noise {noise:g}"] = across[-1], values[-1].mean()
    for panel, text in zip(axes[0], ("gain over RLVR, mean accuracy over the run", "highest leakage of the run (share)")):
        panel.set(xscale="log", xlabel="eps_w, the weights' clip (log scale)", ylabel=text)
        panel.set_xticks(clips, [f"{clip:g}" for clip in clips])
        panel.minorticks_off()
    for panel, where in zip(axes[0], ends):
        rlsd.write_names(panel, where, {name: name for name in where}, {name: COLOURS[float(name.split()[1])] for name in where})
    axes[0, 0].axhline(0, color="#888888", linewidth=0.8)
    axes[0, 0].set_title("The noisier the verifier, the more falling weights gain", loc="left")
    axes[0, 1].set_title("Weights that stay leak (dashed; solid: lambda falls)", loc="left")
    noise = 0.4
    shown = {f"RLSD, {schedule}": f"RLSD, eps_w 1.0, {schedule}" for schedule in SCHEDULES} | {name: name for name in OTHERS}
    where = {}
    for name, label in shown.items():
        gain, leak = gain_and_leak(lines, label, noise)
        where[name] = leak.mean(), gain.mean()
        axes[1, 0].plot(leak, gain, "o", markersize=3, color="#888888")
        axes[1, 0].plot(leak.mean(), gain.mean(), "o", color="#D55E00" if "RLSD" in name else "#0072B2")
    axes[1, 0].set(xlabel="highest leakage of the run (share)", ylabel="gain over RLVR", xlim=(-0.02, None))
    rlsd.write_names(axes[1, 0], where, {name: name for name in where}, {name: "#D55E00" if "RLSD" in name else "#0072B2" for name in where})
    axes[1, 0].set_title(f"Controls and cures, noise {noise}, eps_w 1 (small: a seed)", loc="left")
    axes[1, 1].plot(x, y, "o", markersize=3, color="#0072B2", alpha=0.5)
    axes[1, 1].axhline(0, color="#888888", linewidth=0.8)
    axes[1, 1].axvline(0, color="#888888", linewidth=0.8)
    axes[1, 1].set(xlabel="the formula's push on the token (nats per unit of step size)", ylabel="measured rise of log P_S (same unit)")
    axes[1, 1].set_title(f"A coin for a reward still pushes: {agree:.0%} as predicted", loc="left")
    study.finish(figure, flags.out / "drift.png", flags.out / "runs" / "drift.jsonl")


if __name__ == "__main__":
    study.command(main)
