"""The switches of the loss beyond the paper, each against its formula."""

import dataclasses

import pytest
import torch

from dnnlib.util import ConfigError
from support.tiny import (
    double,
    fake_batch,
    generator,
    networks,
    real_batch,
    render_pairs,
    same,
    seeded,
    train_mode,
)
from training import augment
from training.augment import Changes, augment_images, augment_labels, draw_changes
from training.loss import PV3DLoss

softplus = torch.nn.functional.softplus
LATE = 10**9  # clips seen: every schedule has ended


def test_gamma_of_each_discriminator():
    """That of D_image is r1_gamma, and so is that of D_video unless it has its own."""

    def terms(**options):
        loss = PV3DLoss.Config(**options, image_weight=2.0, video_weight=0.5).build()
        found = loss.terms('Dreg', train_mode(networks(), 'Dreg'), real_batch(), fake_batch(), LATE, None)
        return [(t.loss / p).item() for t in found for p in t.stats.values()]

    assert terms(r1_gamma=3.0) == pytest.approx([3.0, 0.75])
    assert terms(r1_gamma=3.0, r1_gamma_video=0.2) == pytest.approx([3.0, 0.05])
    assert terms(r1_gamma=3.0, r1_gamma_video=0.0) == pytest.approx([3.0, 0.0])
    with pytest.raises(ConfigError, match='r1_gamma_video=-1'):
        PV3DLoss.Config(r1_gamma_video=-1.0)


def test_discriminators_see_no_absolute_time():
    nets, real = networks(), real_batch()
    nets, real = double(nets), double(real)
    loss = PV3DLoss.Config().build()
    first, later = (loss.scores(nets, real._replace(t=real.t + s), LATE, seeded(0), 0.0) for s in (0, 7))
    for name in ('image', 'video'):
        same(first[name], later[name])


@pytest.mark.parametrize('r1_delta_t', [True, False])
@pytest.mark.parametrize('gain', [1.0, 4.0])
def test_r1_of_differences_is_taken_on_frames(gain, r1_delta_t):
    """Each frame has the slope of the difference, times the gain: the penalty is 2 gain^2 |slope|^2."""
    nets = train_mode(double(networks(pair='difference', difference_gain=gain)), 'Dreg')
    config = PV3DLoss.Config(r1_delta_t=r1_delta_t, r1_gamma=3.0, video_weight=0.5, blur_sigma=0.0)
    real = double(real_batch())
    _, term = config.build().terms('Dreg', nets, real, double(fake_batch()), LATE, None)
    pair = nets.D_video.pair_input(real.frames, real.t).requires_grad_()
    (grad,) = torch.autograd.grad(nets.D_video(pair, real.c).sum(), pair)
    expected = 2 * gain**2 * grad[:, :3].square().sum() / 2  # mean over clips; the time plane does not count
    assert term.stats['Loss/r1/video'].item() == pytest.approx(expected.item(), rel=1e-9)
    assert term.loss.item() == pytest.approx(0.5 * 3.0 / 2 * expected.item(), rel=1e-9)


def test_reused_fakes_are_judged_as_if_made_again():
    """With G as it was, terms, gradients and mean w of Dmain are the same; nothing leads back to G."""
    nets, real, fake = networks(), real_batch(), fake_batch()
    config = PV3DLoss.Config(blur_fade_nimg=625_000)
    (term,) = config.build().terms('Gmain', train_mode(nets, 'Gmain'), real, fake, 500_000, None)
    assert term.made is None
    loss = dataclasses.replace(config, reuse_fakes=True).build()
    (term,) = loss.terms('Gmain', nets, real, fake, 500_000, None)
    assert not any(x.requires_grad for x in term.made if x is not None)

    def gradients(fake):
        terms = list(loss.terms('Dmain', train_mode(nets, 'Dmain'), real, fake, 500_000, None))
        sum(t.loss for t in terms).backward()
        grads = [p.grad for D in nets[1:] for p in D.parameters()]
        for D in nets[1:]:
            D.zero_grad(set_to_none=True)
        return [*(t.loss for t in terms), *grads, *(t.w_mean for t in terms if t.w_mean is not None)]

    nets.G.render = None  # not called for what is reused
    reused = gradients(term.made)
    del nets.G.render
    for ours, usual in zip(reused, gradients(fake), strict=True):
        assert torch.equal(ours, usual)


def later_frames(G, fake, swap=False):
    """Returns the later raw frames of two clips with each of their motion codes, one by one."""
    c_map = fake.c_other if swap else fake.c
    return [
        torch.cat(
            [G(fake.z_a[[n]], z_m[[n]], fake.t[[n], 1], fake.c[[n], 1], c_map[[n], 1])[1] for n in range(2)]
        )
        for z_m in (fake.z_m, fake.z_m_other)
    ]


def motion_gradient(value, G):
    """Returns the gradient in the weights of the motion layers, as one vector."""
    weights = [p for n, p in G.named_parameters() if '.motion.' in n and n.endswith('weight')]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights, retain_graph=True)])


@pytest.mark.parametrize(('clips', 'swap'), [(2, 1.0), (2, 0.0), (8, 1.0)])
def test_diversity_is_its_formula(clips, swap):
    """The later frames of a quarter of the clips, two at least; neither noise nor jitter is in it."""
    nets, fake = double(networks()), double(fake_batch(clips))._replace(swap=torch.full([clips], swap))
    loss = PV3DLoss.Config(diversity_weight=0.3).build()
    _, term = loss.terms('Gmain', nets, double(real_batch(clips)), fake, LATE, seeded(0))
    one, other = later_frames(nets.G, fake, swap=swap == 0)
    difference = (one - other).abs().mean()
    expected = 0.3 * 0.02 / (2.9 * difference + 0.01)
    same(term.stats['Loss/G/diversity'], difference.detach(), 1e-9)
    same(term.loss, expected, 1e-9)
    assert 0 < term.loss < 0.6
    same(*(motion_gradient(x, nets.G) for x in (term.loss, expected)), 1e-9)


def test_diversity_uses_a_quarter_of_the_clips(monkeypatch):
    G, seen = generator(), []
    render = G.render
    monkeypatch.setattr(G, 'render', lambda *a: (seen.append(len(a[0])), render(*a))[1])
    loss = PV3DLoss.Config(diversity_weight=1.0).build()
    for clips in (1, 2, 4, 8, 12):
        loss._diversity(G, fake_batch(clips), LATE)
    assert seen == [2, 4, 4, 4, 6]  # frames: one of each clip with two codes
    alike = fake_batch()._replace(z_m_other=fake_batch().z_m)
    assert loss._diversity(G, alike, LATE).loss.item() == pytest.approx(2.0)


def test_diversity_fades():
    """It stays, or its weight falls to 0, after which nothing is rendered for it."""
    assert PV3DLoss.Config(diversity_weight=0.4).build().diversity_weight(LATE) == 0.4
    loss = PV3DLoss.Config(diversity_weight=0.4, diversity_fade_nimg=100).build()
    assert [loss.diversity_weight(n) for n in (0, 50, 100, LATE)] == [0.4, 0.2, 0, 0]
    batches = double(real_batch()), double(fake_batch())
    terms = [list(loss.terms('Gmain', double(networks()), *batches, n, None)) for n in (0, 50, 100)]
    first, second = (found[1].loss for found in terms[:2])
    assert len(terms[2]) == 1 and second.item() == pytest.approx(first.item() / 2)


def test_diversity_needs_no_rate():
    """Where clips begin alike (z_m t), the difference per time would move the weights the same way."""
    G, fake = double(networks()).G, double(fake_batch())
    difference = (torch.sub(*later_frames(G, fake))).abs().mean(dim=(1, 2, 3))
    found = [motion_gradient(d.mean(), G) for d in (difference, difference / fake.t[:, 1].clamp(min=0.1))]
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.95


def test_one_frame_of_each_clip():
    """Of every clip either frame, its image, raw image and camera together, in all that D_image judges."""
    nets, seen = networks(), []
    nets.D_image.register_forward_pre_hook(lambda _, args: seen.append(args))
    loss = PV3DLoss.Config(image_frames=1, blur_sigma=0.0, reuse_fakes=True).build()
    real = real_batch(8)
    (term,) = loss.terms('Gmain', train_mode(nets, 'Gmain'), real, fake_batch(8), LATE, seeded(0))
    list(loss.terms('Dmain', train_mode(nets, 'Dmain'), real, term.made, LATE, seeded(1)))
    terms = list(loss.terms('Dreg', nets, real, None, LATE, seeded(2)))
    raw = torch.nn.functional.interpolate(real.frames.flatten(0, 1), (8, 8), mode='bilinear', antialias=True)
    reals, fakes = (real.frames.flatten(0, 1), raw, real.c.flatten(0, 1)), term.made[:2]
    fakes += (term.made.c.flatten(0, 1),)
    choices = []
    for judged, frames in zip(seen, (fakes, fakes, reals, reals), strict=True):
        pairs = [torch.stack([x[0::2], x[1::2]]) for x in frames]
        chosen = [
            [all(torch.equal(x[n], p[i, n]) for x, p in zip(judged, pairs, strict=True)) for i in (0, 1)]
            for n in range(8)
        ]
        assert all(len(x) == 8 for x in judged) and all(sum(hits) == 1 for hits in chosen)
        choices.append([hits[1] for hits in chosen])
    assert all(0 < sum(c) < 8 for c in choices) and choices[0] != choices[1] != choices[2]
    image, raw, c = seen[3]
    grads = torch.autograd.grad(nets.D_image(image, raw, c).sum(), (image, raw))
    expected = sum(g.square().sum() for g in grads) / 8  # mean over the frames judged
    assert terms[0].stats['Loss/r1/image'].item() == pytest.approx(expected.item(), rel=1e-4)


def test_gmain_with_one_frame_is_its_formula():
    """Without a generator it is the first one; the other frame gets its gradient from D_video alone."""
    nets, fake = networks(), fake_batch()
    config = PV3DLoss.Config(
        image_frames=1, image_weight=0.8, video_weight=0.65, swap_end=0.0, blur_sigma=0.0
    )
    (term,) = config.build().terms('Gmain', nets, real_batch(), fake, LATE, None)
    image, raw = render_pairs(nets, fake, fake.c)
    video = nets.D_video(nets.D_video.pair_input(image, fake.t), fake.c)
    logits = nets.D_image(image[:, 0], raw[:, 0], fake.c[:, 0])
    expected = 0.8 * softplus(-logits).mean() + 0.65 * softplus(-video).mean()
    assert term.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    params = [nets.G.to_image_raw.weight, nets.G.synthesis.b4.const]
    for ours, formula in zip(*(torch.autograd.grad(x, params) for x in (term.loss, expected)), strict=True):
        same(ours, formula, 1e-4)


def relativistic_parts(nets, real, fake):
    """Returns (images, raw images, batch) of reals and of fakes, and a function from these to logits."""
    raw = torch.nn.functional.interpolate(real.frames.flatten(0, 1), (8, 8), mode='bilinear', antialias=True)
    image, raw_fake = render_pairs(nets, fake, fake.c)
    sides = ((real.frames, raw.unflatten(0, (2, 2)), real), (image, raw_fake, fake))

    def judge(image, raw, batch):
        pair = nets.D_video.pair_input(image, batch.t)
        frames = (x.flatten(0, 1) for x in (image, raw, batch.c))
        return {'image': nets.D_image(*frames), 'video': nets.D_video(pair, batch.c)}

    return sides, judge


@pytest.mark.parametrize('phase', ['Gmain', 'Dmain'])
def test_relativistic_loss_is_its_formula(phase):
    """softplus of the lead of one side over the other, frame by frame and clip by clip, in float64."""
    nets, real, fake = train_mode(double(networks()), phase), double(real_batch()), double(fake_batch())
    weights = {'image': 0.8, 'video': 0.65}
    options = {f'{name}_weight': weight for name, weight in weights.items()}
    loss = PV3DLoss.Config(adversarial='relativistic', swap_end=0.0, blur_sigma=0.0, **options).build()
    terms = list(loss.terms(phase, nets, real, fake, LATE, None))
    sides, judge = relativistic_parts(nets, real, fake)
    reals, fakes = (judge(*side) for side in sides)
    lead = {name: (fakes[name] - reals[name]) * (-1 if phase == 'Gmain' else 1) for name in weights}
    expected = sum(weights[name] * softplus(lead[name]).mean() for name in weights)
    total = sum(term.loss for term in terms)
    same(total, expected)
    assert [term.w_mean is None for term in terms] == ([True] if phase == 'Gmain' else [False, True])
    params = [nets.D_image.b4.out.weight, nets.D_video.b4.conv.weight]
    params = params if phase == 'Dmain' else [nets.G.to_image_raw.weight, nets.G.synthesis.b4.const]
    for ours, formula in zip(*(torch.autograd.grad(x, params) for x in (total, expected)), strict=True):
        same(ours, formula)
    if phase == 'Dmain':
        signs = {k: v for term in terms for k, v in term.stats.items() if 'signs' in k}
        assert torch.equal(signs['Loss/signs/video/real'], (-lead['video']).sign())


def test_relativistic_loss_does_not_see_what_all_scores_share():
    nets, real, fake = networks(), real_batch(), fake_batch()
    loss = PV3DLoss.Config(adversarial='relativistic').build()

    def values():
        return torch.stack(
            [t.loss for p in ('Gmain', 'Dmain') for t in loss.terms(p, nets, real, fake, LATE, None)]
        )

    before = values()
    nets.D_image.register_forward_hook(lambda _, __, logits: logits + 5)
    same(values(), before, 1e-5)


def test_relativistic_dreg_is_r1_and_r2():
    nets, real, fake = train_mode(double(networks()), 'Dreg'), double(real_batch()), double(fake_batch())
    options = {'r1_gamma': 3.0, 'image_weight': 0.8, 'video_weight': 0.5, 'r1_delta_t': False}
    loss = PV3DLoss.Config(adversarial='relativistic', swap_end=0.0, blur_sigma=0.0, **options).build()
    terms = list(loss.terms('Dreg', nets, real, fake, LATE, None))
    sides, judge = relativistic_parts(nets, real, fake)
    expected = {}
    for name, (image, raw, batch) in zip(('r1', 'r2'), sides, strict=True):
        image, raw = image.detach().requires_grad_(), raw.detach().requires_grad_()
        logits = judge(image, raw, batch)
        slopes = torch.autograd.grad(logits['image'].sum(), (image, raw))
        expected[f'Loss/{name}/image'] = sum(s.square().sum() for s in slopes) / 4  # mean over frames
        (slope,) = torch.autograd.grad(logits['video'].sum(), image)
        expected[f'Loss/{name}/video'] = slope.square().sum() / 2  # mean over clips
    found = {name: value for term in terms for name, value in term.stats.items()}
    assert list(found) == list(expected)
    for name, value in expected.items():
        same(found[name], value)
    weights = [1.5 * 0.8, 1.5 * 0.5] * 2
    for term, weight, value in zip(terms, weights, expected.values(), strict=True):
        same(term.loss, weight * value)


@pytest.fixture
def changes(monkeypatch):
    """Fixes the changes of augmentation, so that a test can make them, too."""
    drawn = Changes(*(x.double() for x in draw_changes(2, 1.0, seeded(5))))
    monkeypatch.setattr(augment, 'draw_changes', lambda n, probability, generator: drawn)
    return drawn


def in_clips(images, changes):
    """Changes images [2N, 3, R, R] clip by clip."""
    return augment_images(images.unflatten(0, (-1, 2)), changes).flatten(0, 1)


def test_discriminators_see_changed_reals_with_their_cameras(changes):
    nets, real, fake = double(networks()), double(real_batch()), double(fake_batch())
    loss = PV3DLoss.Config(r1_gamma=3.0).build()
    terms = list(loss.terms('Dmain', train_mode(nets, 'Dmain'), real, fake, LATE, seeded(0), 0.4))
    raw = torch.nn.functional.interpolate(real.frames.flatten(0, 1), size=8, mode='bilinear', antialias=True)
    image, raw = (in_clips(x, changes) for x in (real.frames.flatten(0, 1), raw))
    c = augment_labels(real.c, changes)
    logits = nets.D_image(image, raw, c.flatten(0, 1))
    pairs = nets.D_video(nets.D_video.pair_input(image.unflatten(0, (-1, 2)), real.t), c)
    scores = loss.scores(nets, real, LATE, seeded(0), 0.4)
    for name, expected, term in zip(('image', 'video'), (logits, pairs), terms[2:], strict=True):
        same(scores[name], expected, 1e-6)
        same(term.stats[f'Loss/scores/{name}/real'], expected, 1e-6)
    leaves = [x.detach().requires_grad_() for x in (image, raw)]
    grads = torch.autograd.grad(nets.D_image(*leaves, c.flatten(0, 1)).sum(), leaves)
    penalty = sum(g.square().sum(dim=(1, 2, 3)) for g in grads).mean()
    term, _ = loss.terms('Dreg', nets, real, fake, LATE, seeded(0), 0.4)
    same(term.stats['Loss/r1/image'], penalty, 1e-6)  # at what is seen


def test_gradients_reach_the_generator_through_the_changes(changes):
    nets, fake = train_mode(double(networks()), 'Gmain'), double(fake_batch())
    loss = PV3DLoss.Config(video_weight=0.5, reuse_fakes=True).build()
    (term,) = loss.terms('Gmain', nets, double(real_batch()), fake, LATE, seeded(0), 0.4)
    plain = loss._fakes(nets.G, fake, LATE, seeded(0))
    image, raw = (in_clips(x, changes) for x in plain[:2])
    c = augment_labels(fake.c, changes)
    pairs = nets.D_video(nets.D_video.pair_input(image.unflatten(0, (-1, 2)), fake.t), c)
    value = softplus(-nets.D_image(image, raw, c.flatten(0, 1))).mean() + 0.5 * softplus(-pairs).mean()
    same(term.loss, value, 1e-9)
    same(term.made.image, image, 1e-9)  # Dmain does not change them again
    weights = [nets.G.synthesis.b4.const, nets.G.decoder.out.weight]
    for ours, expected in zip(*(torch.autograd.grad(x, weights) for x in (term.loss, value)), strict=True):
        same(ours, expected, 1e-9)


def test_nothing_changes_without_a_probability_or_a_generator():
    nets, real, fake = networks(), real_batch(), fake_batch()

    def values(*draws):
        return [t.loss for t in PV3DLoss.Config().build().terms('Dmain', nets, real, fake, LATE, *draws)]

    assert values(seeded(0)) == values(seeded(0), 0.0) != values(seeded(0), 1.0)
    assert values(None) == values(None, 1.0)
