import asyncio
import copy
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.policy import Prompt, Sampling
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree, context_ids

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from agentgym.policies import transformers as embedded  # noqa: E402
from agentgym.policies.transformers import TransformersPolicy  # noqa: E402

torch.set_num_threads(1)
VOCABULARY, STOP = 48, 7
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": STOP,
}


def llama(**sizes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | sizes))


def qwen3(**sizes):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES | sizes))


def mistral(**sizes):
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES | {"sliding_window": None} | sizes))


def gpt2(n_positions=512):
    ends = {"bos_token_id": 1, "eos_token_id": STOP}
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=n_positions, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **ends
    )
    return transformers.GPT2LMHeadModel(config)


def a_model(make=llama, seed=0, dtype=torch.float64, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(**sizes).to(dtype).eval()


def a_policy(model=None, slots=16, stop=frozenset({STOP})):
    return TransformersPolicy(model or a_model(), SimpleNamespace(stop_ids=stop), slots=slots)


def a_tree(ids, name="t"):
    tree = TurnTree(name, Task(name, ""))
    tree.add(Turn(0, None, "env", 0, ids=list(ids)))
    return tree


async def extend(policy, tree, parent, observation, sampling):
    """One sampled turn below ``parent``, and what the environment says to it."""
    turn = Turn(-1, parent, "policy", sampling.seed)
    generation = await policy.generate(Prompt(tree, parent), sampling)
    turn.ids = [*generation.ids, *observation]
    turn.sampled_tokens = len(generation.ids)
    turn.logprobs, turn.versions, turn.cache = generation.logprobs, generation.versions, generation.cache
    turn.metrics = {"temperature": sampling.temperature}
    return tree.add(turn)


@dataclass
class World:
    """Episodes with seeded observations of ragged lengths; ``pause`` event-loop turns pass before each one comes."""

    policy: TransformersPolicy
    temperature: float = 1.0
    turns: int = 3
    pause: int = 0

    async def episode(self, tree, parent, name, forks=()):
        rng = random.Random(name)
        below = []
        for number in range(self.turns):
            last = number + 1 == self.turns
            said = [] if last else [rng.randrange(8, VOCABULARY) for _ in range(rng.randrange(1, 9))]
            sampling = Sampling(self.temperature, rng.randrange(1, 12), rng.getrandbits(32))
            parent = await extend(self.policy, tree, parent, said, sampling)
            for _ in range(self.pause):
                await asyncio.sleep(0)
            if number in forks:
                below.append(asyncio.create_task(self.episode(tree, parent, f"{name} fork {number}")))
        for task in below:
            await task

    async def play(self, trees, group=1, forks=()):
        await asyncio.gather(
            *(self.episode(tree, tree.root, f"{tree.id} {i}", forks) for tree in trees for i in range(group))
        )
        return trees


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [a_tree([rng.randrange(8, VOCABULARY) for _ in range(rng.randrange(3, 30))], f"t{i}") for i in range(count)]


def reference(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()


def assert_exact(model, trees, tolerance=1e-9):
    """Every log-probability is that of a plain forward pass over the whole context; greedy tokens are the likeliest."""
    checked = 0
    for turn in [turn for tree in trees for turn in tree.turns[1:]]:
        before = context_ids(turn.parent)
        sampled = turn.ids[: turn.sampled_tokens]
        logits = reference(model, [*before, *sampled])[len(before) - 1 : -1]
        temperature = turn.metrics["temperature"]
        logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(sampled)[:, None]).squeeze(-1)
        assert (chosen - torch.tensor(turn.logprobs, dtype=torch.float64)).abs().max() <= tolerance
        if not temperature:
            assert (logprobs.max(-1).values - chosen).max() <= tolerance
        checked += len(sampled)
    assert checked


def unique_tokens(trees):
    """The tokens of the trees, each once; the last of an episode is sampled and never read."""
    turns = [turn for tree in trees for turn in tree.turns]
    return sum(len(turn.ids) - (not turn.children) for turn in turns)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("make", [llama, qwen3, gpt2, mistral])
def test_ragged_forked_episodes_equal_a_plain_forward_pass(make, temperature):
    model = a_model(make)
    policy = a_policy(model, slots=64)
    trees = asyncio.run(World(policy, temperature).play(prompts(3), group=2, forks=(0, 1)))
    assert_exact(model, trees)
    assert {len(turn.ids) for tree in trees for turn in tree.turns[1:]} > {1, 5, 9}


@pytest.mark.parametrize("make", [llama, qwen3])
def test_single_precision_keeps_log_probabilities_to_2e_5(make):
    model = a_model(make, dtype=torch.float32, initializer_range=0.1)
    trees = asyncio.run(World(a_policy(model, slots=64), 0.0).play(prompts(5), group=2, forks=(0,)))
    assert_exact(copy.deepcopy(model).double(), trees, 2e-5)


@pytest.mark.parametrize("pause", [0, 5])
def test_no_prefix_is_computed_twice_while_slots_suffice(pause):
    policy = a_policy(slots=64)
    trees = asyncio.run(World(policy, pause=pause).play(prompts(4), group=4, forks=(0, 1)))
    assert len(trees[0].turns) > 30
    assert policy.tokens_computed == unique_tokens(trees)


def test_a_sibling_that_comes_late_copies_the_prefix():
    async def run():
        policy = a_policy()
        tree = a_tree(range(8, 40))
        first = await extend(policy, tree, tree.root, [9, 10], Sampling(0.7, 6, 1))
        await extend(policy, tree, first, [], Sampling(0.7, 6, 2))
        await extend(policy, tree, tree.root, [], Sampling(0.7, 6, 3))
        await extend(policy, tree, first, [], Sampling(0.7, 6, 4))
        assert policy.tokens_computed == unique_tokens([tree])
        return policy, tree

    policy, tree = asyncio.run(run())
    assert_exact(policy.model, [tree])


def test_with_fewer_slots_than_episodes_each_goes_on_in_its_slot():
    policy = a_policy(slots=2)
    trees = asyncio.run(World(policy).play(prompts(6)))
    assert_exact(policy.model, trees)
    assert policy.tokens_computed == unique_tokens(trees)


def test_an_evicted_context_is_computed_again():
    policy = a_policy(slots=2)
    trees = asyncio.run(World(policy, pause=40).play(prompts(6), group=2, forks=(0,)))
    assert_exact(policy.model, trees)
    assert policy.tokens_computed > unique_tokens(trees)


def test_what_somebody_else_wrote_does_not_cost_the_prefix():
    async def run():
        policy = a_policy()
        tree = a_tree(range(8, 40))
        first = await extend(policy, tree, tree.root, [9, 10], Sampling(0.7, 6, 1))
        told = tree.add(Turn(-1, first, "expert", 0, ids=[11, 12, 13]))
        await extend(policy, tree, told, [], Sampling(0.7, 6, 2))
        assert policy.tokens_computed == unique_tokens([tree])

    asyncio.run(run())


@settings(max_examples=25, deadline=None)
@given(
    slots=st.integers(1, 4),
    waves=st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=5), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_any_order_of_forks_and_evictions_is_exact(slots, waves, seed):
    async def run():
        rng = random.Random(seed)
        for wave in waves:
            parents = [(tree.turns[which % len(tree.turns)], length) for which, length in wave]
            observations = [[rng.randrange(8, VOCABULARY) for _ in range(length)] for _, length in parents]
            samplings = [Sampling(rng.choice([0.0, 1.0]), rng.randrange(1, 7), rng.getrandbits(32)) for _ in parents]
            await asyncio.gather(
                *(
                    extend(policy, tree, parent, said, sampling)
                    for (parent, _), said, sampling in zip(parents, observations, samplings, strict=True)
                )
            )

    policy = a_policy(PROPERTY_MODEL, slots=slots)
    tree = a_tree([8, 9, 10, 11, 12])
    asyncio.run(run())
    if waves:
        assert_exact(policy.model, [tree])


PROPERTY_MODEL = a_model(qwen3)


def test_a_slot_that_a_twin_filled_with_equal_tokens_is_not_taken_for_a_finished_prompt():
    async def run():
        policy = a_policy(slots=1, stop=frozenset())
        tree = a_tree([8, 9, 10])
        short = await extend(policy, tree, tree.root, [], Sampling(0.0, 2))
        await extend(policy, tree, short, [], Sampling(0.0, 3))
        await extend(policy, tree, tree.root, [], Sampling(0.0, 9))  # the same tokens and more, in the only slot
        await extend(policy, tree, short, [], Sampling(0.0, 3))
        return policy, tree

    policy, tree = asyncio.run(run())
    assert_exact(policy.model, [tree])


def test_a_prompt_longer_than_one_pass_is_computed_in_several(monkeypatch):
    monkeypatch.setattr(embedded, "PREFILL", 40)
    policy = a_policy(slots=64)
    trees = asyncio.run(World(policy).play(prompts(9), group=2))
    assert_exact(policy.model, trees)
    assert policy.tokens_computed == unique_tokens(trees)


def test_the_cache_grows_beyond_its_first_capacity():
    policy = a_policy(slots=3)
    trees = [a_tree([8 + i % 40 for i in range(length)], str(length)) for length in (5, 250, 700)]
    asyncio.run(World(policy).play(trees))
    assert_exact(policy.model, trees)


def test_each_token_is_drawn_by_inverse_distribution_function_from_the_requests_own_seed():
    policy = a_policy(stop=frozenset())
    tree = a_tree([8, 9, 10])
    turn = asyncio.run(extend(policy, tree, tree.root, [], Sampling(1.3, 60, 5)))
    rng = random.Random(5)
    logits = reference(policy.model, [8, 9, 10, *turn.ids])[2:-1]
    for token, row in zip(turn.ids, (logits / 1.3).softmax(-1), strict=True):
        assert token == int((row.cumsum(-1) <= rng.random()).sum())
    assert len(set(turn.ids)) > 5


def test_a_run_replays_exactly_and_neighbours_change_nothing():
    def run(count):
        trees = asyncio.run(World(a_policy(slots=8)).play(prompts(4)[:count], group=3))
        return [[(turn.ids, turn.logprobs) for turn in tree.turns] for tree in trees]

    together = run(4)
    assert together == run(4)
    alone = run(1)
    assert sorted(ids for ids, _ in alone[0]) == sorted(ids for ids, _ in together[0])


def test_a_generation_ends_with_the_stop_token_or_at_its_length():
    async def run(policy, tokens):
        tree = a_tree([8, 9, 10])
        return await policy.generate(Prompt(tree, tree.root), Sampling(0.0, tokens))

    free = asyncio.run(run(a_policy(stop=frozenset()), 20))
    assert (len(free.ids), free.finish, free.versions) == (20, "length", [(0, 20)])
    stop = free.ids[4]
    stopped = asyncio.run(run(a_policy(stop=frozenset({stop})), 20))
    assert stopped.finish == "stop"
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert len(stopped.logprobs) == len(stopped.ids)


def test_new_weights_in_the_middle_of_a_turn_read_its_tokens_again():
    model, before, after = a_model(), a_model(), a_model(seed=1)
    policy = a_policy(model, stop=frozenset())
    policy.version = 3

    async def run():
        trees = prompts(3)
        tasks = [asyncio.create_task(extend(policy, tree, tree.root, [], Sampling(0.7, 40, 1))) for tree in trees]
        while policy.tokens_computed < 100:
            await asyncio.sleep(0)
        model.load_state_dict(after.state_dict())
        policy.new_weights(4)
        return [await task for task in tasks]

    for turn in asyncio.run(run()):
        (first, old), (second, new) = turn.versions
        assert (first, second, old + new) == (3, 4, 40)
        assert old > 5
        context = context_ids(turn)
        for weights, tokens in ((before, slice(0, old)), (after, slice(old, None))):
            logprobs = (reference(weights, context)[turn.parent.length - 1 : -1] / 0.7).log_softmax(-1)
            chosen = logprobs.gather(-1, torch.tensor(turn.ids)[:, None]).squeeze(-1)[tokens]
            assert torch.allclose(chosen, torch.tensor(turn.logprobs, dtype=torch.float64)[tokens], rtol=0, atol=1e-9)


def test_two_policies_in_one_tree_do_not_touch_each_others_cache():
    ours, theirs = a_policy(), a_policy(a_model(qwen3), slots=16)

    async def run():
        tree = a_tree(range(8, 20))
        parent = tree.root
        for number in range(6):
            parent = await extend((ours, theirs)[number % 2], tree, parent, [9, 10], Sampling(0.0, 5))
        return tree

    tree = asyncio.run(run())
    for number, turn in enumerate(tree.turns[1:]):
        alone = a_tree(context_ids(turn.parent))
        alone.add(Turn(-1, alone.root, "policy", 0, ids=turn.ids[:-2], sampled_tokens=len(turn.ids) - 2))
        alone.turns[1].logprobs, alone.turns[1].metrics = turn.logprobs, turn.metrics
        assert_exact((ours, theirs)[number % 2].model, [alone])


def test_a_cancelled_episode_frees_its_slot_at_once():
    policy = a_policy(slots=2, stop=frozenset())

    async def run():
        doomed, spared, waiting = prompts(3)
        tasks = [
            asyncio.create_task(extend(policy, tree, tree.root, [], Sampling(0.0, 60))) for tree in (doomed, spared, waiting)
        ]
        while policy.tokens_computed < 60:
            await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await asyncio.gather(*tasks[1:])
        assert policy.tokens_computed < 60 + 2 * 60 + 60
        return [spared, waiting]

    assert_exact(policy.model, asyncio.run(run()))


def test_a_fault_reaches_everyone_who_waits_and_the_policy_goes_on():
    policy = a_policy(slots=2)
    broken = [True]

    def fail(*_):
        if broken[0]:
            raise MemoryError("no room for the cache")

    policy.model.model.layers[1].register_forward_pre_hook(fail)

    async def run():
        trees = prompts(4)
        asked = (extend(policy, tree, tree.root, [], Sampling(0.0, 5)) for tree in trees)
        faults = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(fault) for fault in faults] == [MemoryError] * 4
        broken[0] = False
        return await World(policy).play(trees)

    assert_exact(policy.model, asyncio.run(run()))


def test_weights_that_are_not_finite_are_reported():
    policy = a_policy()
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    tree = a_tree([8, 9, 10])
    with pytest.raises(AgentGymError, match="not finite"):
        asyncio.run(policy.generate(Prompt(tree, tree.root), Sampling()))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_only_the_context_that_is_too_long_for_the_model_fails(make):
    sizes = {"n_positions": 64} if make is gpt2 else {"max_position_embeddings": 64}
    policy = a_policy(a_model(make, **sizes), stop=frozenset())
    trees = [a_tree([9] * length, str(length)) for length in (64, 50, 10)]

    async def run():
        asked = (extend(policy, tree, tree.root, [], Sampling(0.0, 30)) for tree in trees)
        return await asyncio.gather(*asked, return_exceptions=True)

    too_long, to_the_end, short = asyncio.run(run())
    assert isinstance(too_long, AgentGymError)
    assert (len(to_the_end.ids), len(short.ids)) == (14, 30)
    assert_exact(policy.model, trees[1:])


def test_a_sliding_window_bounds_the_context_inside_which_it_is_exact():
    model = a_model(mistral, sliding_window=32)
    policy = a_policy(model, stop=frozenset())
    tree = a_tree(range(8, 28))
    turn = asyncio.run(extend(policy, tree, tree.root, [], Sampling(0.0, 100)))
    assert turn.length == 32
    assert_exact(model, [tree])


def test_a_model_without_a_cache_for_each_token_is_refused():
    config = SimpleNamespace(model_type="mixed", layer_types=["full_attention", "linear_attention"])
    config.get_text_config = lambda: config
    with pytest.raises(AgentGymError, match="linear_attention"):
        a_policy(SimpleNamespace(config=config))


def test_scores_are_the_log_probabilities_that_sampling_reports():
    policy = a_policy()
    tree = asyncio.run(World(policy, turns=1).play(prompts(1)))[0]
    turn = tree.turns[1]
    scores = asyncio.run(policy.score(context_ids(turn)))
    assert scores.logprobs.shape == (turn.length,)
    assert scores.logprobs[0] == 0
    assert scores.logprobs[-len(turn.ids) :].tolist() == pytest.approx(turn.logprobs, abs=1e-9)


@pytest.mark.parametrize("hint", [None, [20, 21, 22]])
def test_scores_with_a_hint_and_the_likeliest_tokens(hint):
    policy = a_policy()
    ids = [8, 9, 10, 11, 8]
    scores = asyncio.run(policy.score(ids, topk=VOCABULARY, hint=hint))
    assert scores.topk_ids.shape == scores.topk_logprobs.shape == (5, VOCABULARY)
    context = [*(hint or []), *ids]
    logprobs = reference(policy.model, context).log_softmax(-1)
    for place, token in enumerate(ids):
        before = place + len(hint or []) - 1
        if before < 0:
            assert scores.logprobs[place] == scores.topk_logprobs[place].abs().sum() == 0
            continue
        assert scores.logprobs[place].item() == pytest.approx(logprobs[before, token].item(), abs=1e-9)
        best = logprobs[before].sort(descending=True)
        assert torch.allclose(scores.topk_logprobs[place], best.values, rtol=0, atol=1e-9)
        assert scores.topk_ids[place].tolist() == best.indices.tolist()


def test_scores_may_enter_a_loss():
    scores = asyncio.run(a_policy().score([8, 9, 10])).logprobs
    student = torch.zeros(3, dtype=scores.dtype, requires_grad=True)
    (student * scores).sum().backward()
    assert student.grad.tolist() == scores.tolist()


def test_a_model_of_the_hub_is_loaded_with_its_own_weights(tmp_path, monkeypatch):
    model = a_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    chat = SimpleNamespace(stop_ids=frozenset())
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: name)
    monkeypatch.setattr(embedded.Chat, "of", lambda tokenizer: chat)
    policy = TransformersPolicy.load(str(tmp_path), slots=2)
    trees = asyncio.run(World(policy).play(prompts(3)))
    assert_exact(model.double(), trees, 2e-5)


def test_padding_beside_a_long_context_stays_within_the_models_positions():
    policy = a_policy(a_model(gpt2, n_positions=64), stop=frozenset())
    long, fresh = a_tree([9] * 40, "long"), a_tree([9] * 50, "fresh")

    async def run():
        turn = await extend(policy, long, long.root, [8, 9], Sampling(0.0, 5))
        below = ((long, turn), (fresh, fresh.root))
        await asyncio.gather(*(extend(policy, tree, parent, [], Sampling(0.0, 5)) for tree, parent in below))

    asyncio.run(run())
    assert_exact(policy.model, [long, fresh])
