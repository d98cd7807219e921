"""Relations between samples, contrast, and losses on gradients, as RepDistiller, KD-Zoo and the authors write them."""

import math

import torch
import torch.nn.functional as F


def similarities(features, eps):
    rows = features / (torch.sqrt(torch.sum(features**2, dim=1, keepdim=True)) + eps)
    similar = (torch.mm(rows, rows.transpose(0, 1)) + 1.0) / 2.0
    return similar / torch.sum(similar, dim=1, keepdim=True)


def pkt(loss, student, teacher):
    own, target = similarities(student, loss.eps), similarities(teacher, loss.eps)
    return torch.mean(target * torch.log((target + loss.eps) / (own + loss.eps)))


def pkt_supervised(loss, student, *, labels):
    own = similarities(student, loss.eps)
    target = (labels.view(-1, 1).repeat((1, len(labels))) == labels).float()
    target = target / torch.sum(target, dim=1, keepdim=True)
    return torch.mean(target * torch.log((target + loss.eps) / (own + loss.eps)))


def sp(loss, student, teacher):
    losses = []
    for mine, theirs in zip(student, teacher, strict=True):
        mine, theirs = (each.view(each.shape[0], -1) for each in (mine, theirs))
        own, target = (F.normalize(torch.mm(each, torch.t(each))) for each in (mine, theirs))
        losses.append(((target - own) * (target - own)).view(-1, 1).sum(0) / (len(mine) * len(mine)))
    return sum(losses).squeeze()


def pairwise_distances(rows, eps=1e-12):
    squares = rows.pow(2).sum(dim=1)
    distances = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.t()).clamp(min=eps).sqrt()
    distances = distances.clone()
    distances[range(len(rows)), range(len(rows))] = 0
    return distances


def rkd(loss, student, teacher):
    def angles(rows):
        unit = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), p=2, dim=2)
        return torch.bmm(unit, unit.transpose(1, 2)).view(-1)

    with torch.no_grad():
        target = pairwise_distances(teacher)
        target = target / target[target > 0].mean()
        target_angles = angles(teacher)
    own = pairwise_distances(student)
    own = own / own[own > 0].mean()
    distance, angle = F.smooth_l1_loss(own, target), F.smooth_l1_loss(angles(student), target_angles)
    return loss.distance * distance + loss.angle * angle


def cc(loss, student, teacher):
    def kernel(features):
        features = F.normalize(features, p=2, dim=-1)
        products = torch.matmul(features, torch.t(features))
        total = torch.zeros_like(products)
        for power in range(loss.order + 1):
            factor = math.exp(-2 * loss.gamma) * (2 * loss.gamma) ** power / math.factorial(power)
            total = total + factor * torch.pow(products, power)
        return total

    return F.mse_loss(kernel(student), kernel(teacher))


def cc_repdistiller(loss, student, teacher):
    difference = torch.abs(
        loss.embed_student(student.view(len(student), -1)) - loss.embed_teacher(teacher.view(len(teacher), -1))
    )
    return torch.mean((difference[:-1] * difference[1:]).sum(1))


def irg(loss, student, teacher):
    def distances(features, eps=1e-12):
        rows = features.view(features.size(0), -1)
        squares = rows.pow(2).sum(dim=1)
        edges = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * torch.mm(rows, rows.t())).clamp(min=eps)
        edges = edges.clone()
        edges[range(len(rows)), range(len(rows))] = 0
        return edges / (edges.max() + eps)

    def way(first, second):
        first = F.adaptive_avg_pool2d(first, second.shape[2:])
        if first.shape[1] != second.shape[1]:
            second = (second[:, 0::2] + second[:, 1::2]) / 2
        squares = (first - second).view(len(first), -1).pow(2).sum(dim=1)
        return squares / squares.max()

    edges = [F.mse_loss(distances(mine), distances(theirs)) for mine, theirs in zip(student[:3], teacher, strict=False)]
    ways = F.mse_loss(way(*student[:2]), way(*teacher[:2]))
    vertices = F.mse_loss(student[3], teacher[3])
    return loss.vertex * vertices + loss.edge * sum(edges) / 3 + loss.transformation * ways


def contrasted(loss, student, teacher, indices):
    """RepDistiller's memory: every row that is compared is copied out of it."""
    memory = loss.contrast
    samples, width = memory.of_student.shape
    own = F.normalize(memory.embed_student(student), dim=1)
    theirs = F.normalize(memory.embed_teacher(teacher), dim=1)
    batch, count = indices.shape

    def scores(embedded, bank, scale):
        rows = torch.index_select(bank, 0, indices.view(-1)).detach().view(batch, count, width)
        out = torch.exp(torch.div(torch.bmm(rows, embedded.view(batch, width, 1)), memory.temperature))
        if scale < 0:
            scale.fill_(out.mean() * samples)
        return torch.div(out, scale.clone())

    def nce(out):
        noise = (count - 1) / samples
        positive, negative = out.select(1, 0), out.narrow(1, 1, count - 1)
        same = torch.div(positive, positive.add(noise + 1e-7)).log_()
        different = torch.div(negative.clone().fill_(noise), negative.add(noise + 1e-7)).log_()
        return -(same.sum(0) + different.view(-1, 1).sum(0)) / batch

    of_teacher = scores(theirs, memory.of_student, memory.scale_teacher)
    of_student = scores(own, memory.of_teacher, memory.scale_student)
    with torch.no_grad():
        for bank, embedded in ((memory.of_student, own), (memory.of_teacher, theirs)):
            rows = torch.index_select(bank, 0, indices[:, 0])
            rows.mul_(memory.momentum).add_(torch.mul(embedded, 1 - memory.momentum))
            norm = rows.pow(2).sum(1, keepdim=True).pow(0.5)
            bank.index_copy_(0, indices[:, 0], rows.div(norm))
    return (nce(of_student) + nce(of_teacher)).squeeze()


def crd(loss, student, teacher, *, sample_ids, labels):
    # The original draws a sample's negatives in its data loader, by NumPy; here as there, one sample after the other.
    loss.classes[sample_ids] = labels
    rows = []
    for own, label in zip(sample_ids, labels, strict=True):
        others = (loss.classes != label).nonzero().squeeze(1)
        rows.append(torch.cat([own[None], others[torch.randint(len(others), (loss.negatives,))]]))
    return contrasted(loss, student, teacher, torch.stack(rows))


def crd_instance(loss, student, teacher, *, sample_ids):
    sampler, count = loss.sampler, len(sample_ids) * (loss.negatives + 1)
    drawn = torch.zeros(count, dtype=torch.long).random_(0, len(sampler.keep))
    probability = sampler.keep.index_select(0, drawn)
    alias = sampler.alias.index_select(0, drawn)
    kept = torch.bernoulli(probability)
    indices = drawn.mul(kept.long()) + alias.mul((1 - kept).long())
    indices = indices.view(len(sample_ids), -1)
    indices.select(1, 0).copy_(sample_ids)
    return contrasted(loss, student, teacher, indices)


def dcd(loss, student, teacher):
    own, target = F.normalize(loss.embed_student(student), dim=1), F.normalize(loss.embed_teacher(teacher), dim=1)
    scale = loss.log_scale.exp().clamp(0, loss.max_scale)
    scores = torch.mm(own, target.t()) * scale + loss.bias
    contrast = F.cross_entropy(scores, torch.arange(len(scores)))
    finds, found = F.log_softmax(scores, dim=1), F.softmax(scores, dim=0).t()
    return contrast + loss.alpha * F.kl_div(finds, found, reduction="batchmean")


# Gradients


def sobolev(loss, student, teacher, *, inputs, labels):
    def jacobian(logits, create_graph):
        target = logits.gather(1, labels.unsqueeze(1))
        gradient = torch.autograd.grad(
            target, inputs, grad_outputs=torch.ones_like(target), create_graph=create_graph, retain_graph=True
        )[0]
        return F.normalize(gradient.view(gradient.size(0), -1))

    return F.mse_loss(jacobian(student, True), jacobian(teacher, False).detach())


def lwm(loss, student, teacher, *, labels):
    def seen(maps, logits, create_graph):
        target = logits.gather(1, labels.unsqueeze(1))
        gradient = torch.autograd.grad(
            target, maps, grad_outputs=torch.ones_like(target), create_graph=create_graph, retain_graph=True
        )[0]
        activation = F.relu(torch.sum(F.adaptive_avg_pool2d(gradient, 1) * maps, dim=1))
        return F.normalize(activation.view(activation.size(0), -1))

    return F.l1_loss(seen(*student, True), seen(*teacher, False).detach())


def bss(loss, student, teacher, *, inputs, labels, student_model, teacher_model):
    right = (teacher.argmax(dim=1) == labels).nonzero().squeeze(1)
    of_student, of_teacher = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    chosen = right
    if len(right) > loss.samples:
        difference = (of_teacher - of_student) ** 2
        difference[range(len(labels)), labels] = 0
        chosen = right[difference.sum(dim=1)[right].topk(loss.samples)[1]]
    images, origins = inputs[chosen].detach(), labels[chosen]
    others = of_teacher[chosen].detach().clone()
    others[range(len(chosen)), origins] = 0
    targets = torch.multinomial(others, 1).squeeze(1)
    for _ in range(loss.steps):
        images = images.detach().requires_grad_()
        logits = teacher_model(images)
        scores = F.softmax(logits, dim=1) if loss.scores == "probabilities" else logits
        gap = scores[range(len(images)), targets] - scores[range(len(images)), origins]
        gradient = torch.autograd.grad(gap.sum(), images)[0]
        moving = (logits.argmax(dim=1) == origins).float()
        if moving.sum() == 0:
            break
        norm = gradient.view(len(images), -1).norm(p=2, dim=1) + 1e-18
        length = loss.step_size * (-gap.detach() + 1e-4) * moving / norm
        images = torch.clamp(images.detach() + length.view(-1, 1, 1, 1) * gradient, -loss.limit, loss.limit)
    images = images.detach()
    with torch.no_grad():
        of_teacher = F.softmax(teacher_model(images) / loss.divergence.temperature, dim=1)
    log_student = F.log_softmax(student_model(images) / loss.divergence.temperature, dim=1)
    return F.kl_div(log_student, of_teacher, reduction="batchmean")
