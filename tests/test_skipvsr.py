"""SkipVSR: the gathered form against the dense one, the gate's rules, patches, and the shipped estimators."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.basicvsr import load as load_basicvsr
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import Tally, TileGate, sample, tile_mean
from vsvsr.models.skipvsr.head import GatedHead
from vsvsr.models.skipvsr.motion import changed_windows
from vsvsr.models.skipvsr.patches import PatchGrid
from vsvsr.ops.block_skip import BlockWeights, SkipGrid, Tiles, block_skip_reference

GOLDEN = Path(__file__).parent / "data" / "basicvsr_reds4_bikes.safetensors"
CHECKPOINTS = ("BasicVSR_REDS4", "BasicVSR_Vimeo90K_BIx4", "BasicVSR_Vimeo90K_BDx4")


@pytest.fixture
def network() -> SkipVSR:
    return load(weights.install("BasicVSR_REDS4"), weights.find("skip-estimators-BasicVSR_REDS4")).network


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    return list(load_file(GOLDEN)["input"][:, :, :64, :72].float().div(255))


def upscaled(network: BasicVSR, frames: list[Tensor]) -> Tensor:
    return torch.stack(list(network.upscale(frames, range(len(frames)))))


def one_block(network: SkipVSR, sensitivity: float) -> None:
    """Keep one block in the forward trunk, with an estimator of known confidence."""
    network.forward_trunk.main[2] = network.forward_trunk.main[2][:1]
    network.estimator_forward.weight.fill_(-sensitivity)
    network.estimator_forward.bias.fill_(3.0)


def random_block(generator: torch.Generator, channels: int = 8) -> BlockWeights:
    shapes = ((channels, channels, 3, 3), (channels,)) * 2
    return BlockWeights(*(0.3 * torch.randn(shape, generator=generator) for shape in shapes))


@pytest.mark.parametrize("tile", [16, 48])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("n", "height", "width"), [(1, 96, 96), (1, 37, 200), (2, 49, 50), (1, 1, 17)])
def test_the_gathered_form_is_the_dense_masked_form(tile: int, share: float, n: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(tile + height)
    x, held = torch.randn(2, n, 8, height, width, generator=generator)
    block = random_block(generator)
    grid = SkipGrid(n, height, width, tile, torch.device("cpu"))
    active = torch.rand(n, grid.rows, grid.columns, generator=generator) < share
    if share == 0.9:
        active.fill_(True)[0, 0, 0] = False
    expected, expected_residual = block_skip_reference(x, held, block, active, tile)
    numbers = active.flatten().nonzero()[:, 0]
    listed = Tiles(numbers, len(numbers))
    pixels, held_pixels = grid.pixels(x), grid.pixels(held)
    grid.block_skip_(pixels, held_pixels, block, listed)
    torch.testing.assert_close(grid.image(pixels), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(grid.image(held_pixels), expected_residual, atol=1e-5, rtol=0)
    assert not pixels[-1].any()
    assert not held_pixels[-1].any()
    # Without held residuals skipped tiles pass unchanged.
    passed, _ = block_skip_reference(x, torch.zeros_like(x), block, active, tile)
    pixels = grid.pixels(x)
    grid.block_skip_(pixels, None, block, listed)
    torch.testing.assert_close(grid.image(pixels), passed, atol=1e-5, rtol=0)
    assert not pixels[-1].any()


def test_everything_runs_where_gathered_tiles_would_be_more_pixels() -> None:
    # Tiles of 16 with their halo: 18 x 18 and 16 x 16 pixels, 580 for two convolutions; the frame has 2 * 32 * 40.
    grid = SkipGrid(1, 32, 40, 16, torch.device("cpu"))
    assert [grid.runs_everywhere(tiles) for tiles in range(7)] == [False] * 5 + [True] * 2


@pytest.mark.parametrize(("stride", "decisions"), [(1, 30), (4, 8), (30, 1)])
def test_blocks_of_a_stride_share_a_decision(network: SkipVSR, stride: int, decisions: int) -> None:
    first = torch.rand(1, 67, 40, 48, generator=torch.Generator().manual_seed(6))
    second = first + 0.05 * torch.linspace(0, 1, 48)
    network.hold, network.stride, network.threshold = False, stride, network.threshold_of(0.5)
    executed: list[int] = []
    trunk = network.trunk("forward")
    trunk(first)
    add = network.tally.add

    def record(count: int, total: int) -> None:
        executed.append(count)
        add(count, total)

    network.tally.add = record  # type: ignore[method-assign]
    trunk(second)
    groups = [executed[m : m + stride] for m in range(0, 30, stride)]
    assert len(groups) == decisions
    assert all(len(set(group)) == 1 for group in groups)
    assert any(0 < group[0] < 9 for group in groups)


def test_change_is_averaged_over_the_part_of_a_tile_that_lies_in_the_frame() -> None:
    image = torch.ones(1, 8, 37, 200)
    image[:, :, 32:, 192:] = 5.0
    means = tile_mean(sample(image), 16)
    assert means.shape == (1, 3, 13, 8)
    assert torch.all(means[0, 2, 12] == 5.0)
    assert torch.all(means[0, :2] == 1.0)


def test_threshold_zero_is_basicvsr_bit_for_bit(network: SkipVSR, frames: list[Tensor]) -> None:
    plain = load_basicvsr(weights.install("BasicVSR_REDS4")).network
    assert torch.equal(upscaled(network, frames[:3]), upscaled(plain, frames[:3]))


def test_a_gate_that_never_skips_is_basicvsr(network: SkipVSR, frames: list[Tensor]) -> None:
    expected = upscaled(network, frames[:3])
    network.threshold = 1e-30
    torch.testing.assert_close(upscaled(network, frames[:3]), expected, atol=1e-5, rtol=0)
    assert network.tally.fraction == 1.0


def test_at_threshold_one_the_second_frame_passes_every_block_by(network: SkipVSR) -> None:
    first, second = torch.rand(2, 1, 67, 40, 40, generator=torch.Generator().manual_seed(1))
    entry = F.leaky_relu(network.forward_trunk.main[0](second), 0.1)
    network.threshold, network.hold = 1.0, False
    trunk = network.trunk("forward")
    torch.testing.assert_close(trunk(first), network.forward_trunk(first), atol=1e-4, rtol=0)
    assert torch.equal(trunk(second), entry)
    # Holding adds the first frame's residuals to the first frame's entry instead.
    network.hold = True
    trunk = network.trunk("forward")
    state = trunk(first).clone()
    torch.testing.assert_close(trunk(second), state, atol=1e-6, rtol=0)
    assert network.tally.executed == 2 * 30 * 9
    assert network.tally.total == 4 * 30 * 9


@pytest.mark.parametrize("hold", [True, False])
def test_for_given_features_a_higher_threshold_runs_fewer_tiles(network: SkipVSR, hold: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(1, 67, 48, 64, generator=generator)
    second = first + torch.linspace(0, 0.2, 64) * torch.rand(1, 67, 48, 64, generator=generator)
    network.hold = hold
    one_block(network, 1.0)
    executed = []
    for threshold in (1e-9, *torch.linspace(0.05, 1, 20).tolist()):
        network.threshold, network.tally = threshold, Tally()
        trunk = network.trunk("forward")
        trunk(first)
        trunk(second)
        executed.append(network.tally.executed - 12)
    assert executed == sorted(executed, reverse=True)
    assert executed[0] == 12
    assert executed[-1] == 0
    assert len(set(executed)) > 3


@pytest.mark.parametrize("hold", [True, False])
def test_an_unchanged_input_gets_the_confidence_of_zero_change(network: SkipVSR, hold: bool) -> None:
    x = torch.rand(1, 67, 32, 32, generator=torch.Generator().manual_seed(3))
    network.hold = hold
    one_block(network, 10.0)
    still = torch.sigmoid(torch.tensor(-3.0)).item()
    for threshold, expected in ((still * 0.999, 4), (still * 1.001, 0)):
        network.threshold, network.tally = threshold, Tally()
        trunk = network.trunk("forward")
        trunk(x)
        trunk(x)
        assert network.tally.executed - 4 == expected


def test_slow_change_adds_up_until_the_block_runs(network: SkipVSR) -> None:
    x = torch.rand(1, 67, 32, 32, generator=torch.Generator().manual_seed(4))
    one_block(network, 10.0)
    network.threshold = 0.5
    trunk = network.trunk("forward")
    ran = []
    for i in range(40):
        before = network.tally.executed
        trunk(x * (1 + 0.003 * i))
        ran.append(network.tally.executed - before)
    assert ran[:2] == [4, 0]
    assert sum(ran[1:]) > 0
    assert ran.count(0) > 20


def test_chunks_leave_nothing_behind(network: SkipVSR, frames: list[Tensor]) -> None:
    network.threshold = network.threshold_of(0.5)
    first = upscaled(network, frames[:3])
    upscaled(network, [frame.flip(2) for frame in frames[:2]])
    assert torch.equal(upscaled(network, frames[:3]), first)


def test_a_resting_picture_comes_to_rest_though_its_flow_is_not_exactly_zero(
    network: SkipVSR, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SkipVSR, "flows", BasicVSR.flows)
    network.threshold = 0.3
    resting = [frames[0][:, :48, :48]] * 9
    executed, pictures = [], []
    passes = network.upscale(resting, range(len(resting)))
    for picture in passes:
        pictures.append(picture)
        executed.append(network.tally.executed)
    # The forward pass runs in full at the first frame and not at all at the last. The backward pass, which starts at
    # the last frame, skips everything at the first frames.
    assert executed[1] - executed[0] > 0.9 * 30 * 9
    assert executed[-1] == executed[-4]
    assert torch.equal(pictures[5], pictures[4])


def moving_square(side: int, *places: tuple[int, int]) -> list[Tensor]:
    """Frames ``(1, 3, 160, 224)`` with a textured square at each of the places and texture that rests elsewhere."""
    generator = torch.Generator().manual_seed(5)
    scene, square = torch.rand(1, 3, 160, 224, generator=generator), torch.rand(3, side, side, generator=generator)
    frames = []
    for top, left in places:
        frames.append(scene.clone())
        frames[-1][0, :, top : top + side, left : left + side] = square
    return frames


def test_the_window_of_a_pair_of_frames_is_what_differs_with_a_margin() -> None:
    frames = moving_square(12, (80, 96), (83, 100), (83, 100), (0, 212), (0, 100))
    # Rows 80 to 95 and columns 96 to 112 differ, in cells of 8, and 16 around: 48 and 56 pixels, which become 64.
    assert changed_windows(frames) == [
        (slice(64, 128), slice(80, 144)),
        None,
        (slice(0, 128), slice(64, 224)),
        (slice(0, 64), slice(64, 224)),
    ]
    small = [frame[..., :64, :70] for frame in moving_square(12, (40, 40), (40, 44))]
    assert changed_windows(small) == [(slice(0, 64), slice(6, 70))]
    assert changed_windows(frames[:1]) == []


def test_faint_noise_of_a_codec_is_no_change_and_a_slow_pan_over_faint_texture_is() -> None:
    ramp = (torch.arange(128) / 255 * 2).expand(1, 3, 96, 128)
    noise = torch.zeros_like(ramp)
    noise[..., ::3, ::3] = 1 / 255
    whole = slice(0, 96), slice(0, 128)
    assert changed_windows([ramp, ramp + noise, ramp + 4 * noise]) == [None, whole]
    assert changed_windows([ramp, ramp + 0.2 * 2 / 255]) == [whole]


def test_flow_is_estimated_everywhere_where_every_block_runs(network: SkipVSR) -> None:
    frames = moving_square(32, (64, 64), (65, 66))
    assert network.threshold == 0
    assert torch.equal(network.flows(frames)(1, 0), network.spynet(frames[1], frames[0]))


def test_flow_is_zero_where_nothing_moves_and_estimated_in_the_window(network: SkipVSR) -> None:
    frames = moving_square(32, (64, 64), (65, 66))
    network.threshold = 0.3
    flow = network.flows(frames)(1, 0)
    ((rows, columns),) = changed_windows(frames)
    assert torch.equal(flow[..., rows, columns], network.spynet(*(f[..., rows, columns] for f in reversed(frames))))
    assert flow.count_nonzero() == flow[..., rows, columns].count_nonzero()
    moving = flow[..., 75:88, 76:88].mean((0, 2, 3))
    torch.testing.assert_close(moving, torch.tensor([-2.0, -1.0]), atol=0.3, rtol=0)
    assert torch.equal(network.flows([frames[0], frames[0]])(0, 1), torch.zeros(1, 2, 160, 224))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 50), (16, 17)])
def test_the_gated_head_renews_chosen_tiles_as_the_dense_head_does(
    network: SkipVSR, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SkipGrid, "runs_everywhere", lambda grid, tiles: False)
    generator = torch.Generator().manual_seed(height)
    first, second = torch.rand(2, 1, 64, height, width, generator=generator)
    rows, columns = -(-height // 16), -(-width // 16)
    chosen = torch.rand(1, rows, columns, generator=generator) < 0.5
    chosen[0, -1, -1], chosen[0, 0, 0] = True, False

    class Chosen(TileGate):
        def __call__(self, samples: Tensor, reference: Tensor) -> Tensor:
            return chosen

    head = GatedHead(network, [Chosen(network.estimator_forward, 0.5, 16)], 16, network.head_tally)
    old, new = network.detail(first), network.detail(second)
    assert torch.equal(head(first, first), old)
    everywhere = chosen[0].repeat_interleave(64, 0).repeat_interleave(64, 1)[: 4 * height, : 4 * width]
    torch.testing.assert_close(head(second, second), torch.where(everywhere, new, old), atol=1e-5, rtol=0)
    assert network.head_tally.executed == rows * columns + int(chosen.sum())
    assert network.head_tally.total == 2 * rows * columns


def test_the_head_is_made_of_detail_and_base(network: SkipVSR) -> None:
    features, frame = torch.rand(1, 64, 20, 300), torch.rand(1, 3, 20, 300)
    expected, planes = torch.empty(3, 80, 1200), torch.empty(3, 80, 1200)
    network.render(features, frame, expected.unbind(0))
    network.add_base(network.detail(features), frame, planes.unbind(0))
    assert torch.equal(planes, expected)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_resting_picture_is_partly_skipped_and_hardly_changes(checkpoint: str, frames: list[Tensor]) -> None:
    network = load(weights.install(checkpoint), weights.find(f"skip-estimators-{checkpoint}")).network
    resting = [frames[0][:, :48, :48]] * 6
    dense = upscaled(network, resting)
    network.threshold = 0.4
    gated = upscaled(network, resting)
    assert network.tally.fraction < 0.8
    assert (gated - dense).square().mean() < 1e-5


def test_the_shipped_skipvsr_passes_blocks_of_basicvsr_by_and_is_basicvsr_at_threshold_zero(
    frames: list[Tensor],
) -> None:
    network = load(weights.find("SkipVSR_REDS4")).network
    plain = load_basicvsr(weights.install("BasicVSR_REDS4")).network
    assert not network.hold
    assert torch.equal(upscaled(network, frames[:2]), upscaled(plain, frames[:2]))
    network.threshold = 0.45
    gated, dense = upscaled(network, frames[:2]), upscaled(plain, frames[:2])
    assert 0.5 < network.tally.fraction < 1
    assert (gated - dense).square().mean() < 1e-4


def test_the_budget_table_is_sorted_and_its_ends_are_exact(network: SkipVSR) -> None:
    thresholds = [network.threshold_of(budget) for budget in (1.0, 0.9, 0.5, 0.1, 0.0)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == 0.0
    assert thresholds[-1] == network.quantiles[-1]
    assert 0 < thresholds[1] < thresholds[3] < 1


def test_a_checkpoint_without_estimators_allows_no_threshold() -> None:
    checkpoint = weights.install("BasicVSR_REDS4")
    assert load(checkpoint).network.threshold == 0
    with pytest.raises(UserError, match=r"has no confidence estimators; without them only threshold=0 works$"):
        load(checkpoint, threshold=0.1)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 49), (94, 95), (180, 320), (64, 200)])
def test_patches_cover_the_frame_and_merge_to_it(height: int, width: int) -> None:
    grid = PatchGrid(height, width, torch.device("cpu"))
    frame = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    patches = grid.split(frame)
    assert patches.shape[1:] == (3, 48, 48)
    merged = grid.merge(F.interpolate(patches, scale_factor=4, mode="nearest"))
    torch.testing.assert_close(merged, F.interpolate(frame, scale_factor=4, mode="nearest")[0], atol=1e-6, rtol=0)


def test_180x320_is_28_patches() -> None:
    grid = PatchGrid(180, 320, torch.device("cpu"))
    assert (grid.tops, grid.lefts) == ([0, 46, 92, 132], [0, 46, 92, 138, 184, 230, 272])


def test_patch_mode_is_close_to_frame_mode_and_skips_whole_patches(network: SkipVSR, frames: list[Tensor]) -> None:
    expected = upscaled(network, frames[:2])
    network.mode = "patch"
    assert (upscaled(network, frames[:2]) - expected).square().mean() < 1e-5
    network.threshold = 1.0
    upscaled(network, frames[:2])
    assert network.tally.total == 2 * 2 * 30 * 4
    assert network.tally.fraction == 1 / 2


def test_the_cost_is_338_gmac_dense_and_83_with_everything_skipped(network: SkipVSR) -> None:
    # A sixteenth of 180x320: the convolutions' cost is proportional to the area.
    x = torch.zeros(1, 67, 45, 80)
    costs = []
    for threshold in (0.0, 1.0):
        network.threshold, network.hold = threshold, False
        trunks = [network.trunk("backward"), network.trunk("forward")]
        if threshold:
            for trunk in trunks:
                trunk(x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            states = [trunk(x) for trunk in trunks]
            network.reconstruct(network.fuse(torch.cat(states, 1)), x[:, :3])
        costs.append(counter.get_total_flops() / 2 * 16 / 1e9)
    assert costs == pytest.approx([337.8, 83.0], abs=0.1)
