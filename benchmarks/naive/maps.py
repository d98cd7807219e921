"""Losses on feature maps, as RepDistiller, KD-Zoo, mdistiller and the authors' own code write them."""

import torch
import torch.nn.functional as F


def taps(*sides):
    return zip(*(side if isinstance(side, tuple) else (side,) for side in sides), strict=True)


def smaller(student, teacher):
    if student.shape[2] > teacher.shape[2]:
        student = F.adaptive_avg_pool2d(student, (teacher.shape[2], teacher.shape[2]))
    elif student.shape[2] < teacher.shape[2]:
        teacher = F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[2]))
    return student, teacher


def fitnet(loss, student, teacher):
    return sum(
        F.mse_loss(regressor(mine), theirs)
        for regressor, (mine, theirs) in zip(loss.regressors, taps(student, teacher), strict=True)
    )


def feature(loss, student, teacher):
    return sum(F.mse_loss(mine, theirs) for mine, theirs in taps(student, teacher))


def at(loss, student, teacher):
    def attention(maps):
        return F.normalize(maps.pow(loss.p).mean(1).view(maps.size(0), -1))

    losses = []
    for maps in taps(student, teacher):
        mine, theirs = smaller(*maps)
        losses.append((attention(mine) - attention(theirs)).pow(2).mean())
    return sum(losses)


def polynomial_kernel(first, second):
    return (first.unsqueeze(1) * second.unsqueeze(2)).sum(-1).pow(2)


def nst(loss, student, teacher):
    losses = []
    for maps in taps(student, teacher):
        mine, theirs = smaller(*maps)
        mine = F.normalize(mine.view(mine.shape[0], mine.shape[1], -1), dim=2)
        theirs = F.normalize(theirs.view(theirs.shape[0], theirs.shape[1], -1), dim=2)
        total = polynomial_kernel(theirs, theirs).mean().detach() + polynomial_kernel(mine, mine).mean()
        losses.append(total - 2 * polynomial_kernel(mine, theirs).mean())
    return sum(losses)


def fsp(loss, student, teacher):
    """KD-Zoo's, by a matrix product; RepDistiller's, by broadcasting, takes many times as long."""

    def flow(first, second):
        if first.shape[2] > second.shape[2]:
            first = F.adaptive_avg_pool2d(first, (second.shape[2], second.shape[3]))
        first = first.view(first.shape[0], first.shape[1], -1)
        second = second.view(second.shape[0], second.shape[1], -1).transpose(1, 2)
        return torch.bmm(first, second) / first.shape[2]

    losses = []
    for index in range(len(student) - 1):
        mine, theirs = flow(*student[index : index + 2]), flow(*teacher[index : index + 2])
        losses.append(F.mse_loss(mine, theirs))
    return sum(losses)


def ft(loss, student, teacher):
    losses = []
    for index, (mine, theirs) in enumerate(taps(student, teacher)):
        factor = loss.translators[index](mine)
        with torch.no_grad():
            paraphrase = loss.paraphrasers[index].eval().encoder(theirs)
        factor, paraphrase = (F.normalize(each.view(each.size(0), -1)) for each in (factor, paraphrase))
        losses.append((factor - paraphrase).abs().mean())
    return sum(losses)


def ab(loss, student, teacher):
    losses = []
    for index, (mine, theirs) in enumerate(taps(student, teacher)):
        mine, margin = loss.connectors[index](mine), loss.margin
        terms = (mine + margin) ** 2 * ((mine > -margin) & (theirs <= 0)).float()
        terms = terms + (mine - margin) ** 2 * ((mine <= margin) & (theirs > 0)).float()
        losses.append(terms.abs().sum() / mine.size(0) * 2 ** (index - len(loss.connectors) + 1))
    return sum(losses)


def ofd(loss, student, teacher):
    losses = []
    for index, (mine, theirs) in enumerate(taps(student, teacher)):
        mine = loss.connectors[index](mine)
        mask = (theirs < 0).float()
        margin = (theirs * mask).sum(dim=(0, 2, 3), keepdim=True) / (mask.sum(dim=(0, 2, 3), keepdim=True) + 1e-6)
        target = torch.max(theirs, margin)
        terms = F.mse_loss(mine, target, reduction="none") * ((mine > target) | (target > 0)).float()
        losses.append(terms.sum() / mine.size(0) * 2 ** (index - len(loss.connectors) + 1))
    return sum(losses)


def afd(loss, student, teacher):
    attention = loss.attention(student, teacher)
    losses = []
    for place, theirs in enumerate(teacher):
        target = F.normalize(theirs.pow(2).mean(1, keepdim=True).view(theirs.size(0), -1), dim=1)
        distances = []
        for mine in student:
            energy = F.adaptive_avg_pool2d(mine.pow(2).mean(1, keepdim=True), theirs.shape[2:]).view(mine.size(0), -1)
            distances.append((F.normalize(energy, dim=1) - target).pow(2).mean(1))
        losses.append((torch.stack(distances, dim=1) * attention[:, place]).sum(1).mean())
    return sum(losses)


def afds(loss, student, teacher):
    losses = []
    for index, (mine, theirs) in enumerate(taps(student, teacher)):
        mine = loss.regressors[index](mine)
        samples, channels = theirs.shape[:2]
        weights = loss.attentions[index](F.adaptive_avg_pool2d(theirs, 1)).sigmoid().view(samples, channels)
        weights = weights / weights.sum(1).view(-1, 1).expand_as(weights)
        mine, theirs = (each.view(samples, channels, -1) for each in (mine, theirs))
        mine = mine / (torch.norm(mine, dim=2, keepdim=True) + 1e-6)
        theirs = theirs / (torch.norm(theirs, dim=2, keepdim=True) + 1e-6)
        losses.append(torch.sum(weights * torch.mean(torch.pow(mine - theirs, 2), dim=2), dim=1).mean())
    return sum(losses)


def vid(loss, student, teacher):
    losses = []
    for index, maps in enumerate(taps(student, teacher)):
        mine, theirs = smaller(*maps)
        gaussian = loss.gaussians[index]
        mean = gaussian.regressor(mine)
        variance = torch.log(1.0 + torch.exp(gaussian.raw)) + gaussian.epsilon
        variance = variance.view(1, -1, 1, 1)
        losses.append(torch.mean(0.5 * ((mean - theirs) ** 2 / variance + torch.log(variance))))
    return sum(losses)


def kdsvd(loss, student, teacher):
    def directions(maps, count):
        rows = maps.view(maps.shape[0], maps.shape[1], -1).transpose(1, 2)
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        return values[:, :count], vectors.transpose(1, 2)[:, :, :count]

    losses, before = [], None
    for mine, theirs in taps(student, teacher):
        with torch.no_grad():
            values, target = directions(theirs, loss.rank)
        _, own = directions(mine, loss.rank + 3)
        cosines = torch.matmul(own.transpose(1, 2), target)
        best = cosines.abs().argmax(1, keepdim=True)
        sign = torch.sign(cosines.gather(1, best))
        own = own.gather(2, best.expand(-1, own.shape[1], -1)) * sign
        values = F.normalize(values, dim=1).unsqueeze(1)
        after = own * values, target * values
        if before is not None:
            flows = [
                torch.exp(-(now.unsqueeze(2) - then.unsqueeze(1)).pow(2) / 8)
                for now, then in zip(after, before, strict=True)
            ]
            losses.append((flows[0] - flows[1]).pow(2).sum() / mine.shape[0])
        before = after
    return sum(losses)


def ickd(loss, student, teacher):
    losses = []
    for index, (mine, theirs) in enumerate(taps(student, teacher)):
        samples, channels = theirs.shape[:2]
        mine = loss.regressors[index](mine).view(samples, channels, -1)
        theirs = theirs.view(samples, channels, -1)
        mine, theirs = (F.normalize(torch.bmm(each, each.permute(0, 2, 1)), dim=2) for each in (mine, theirs))
        losses.append(torch.norm(mine - theirs, dim=(1, 2)).pow(2).sum() / (samples * channels))
    return sum(losses)


def hcl(student, teacher):
    height, total, weights, weight = student.shape[2], F.mse_loss(student, teacher, reduction="mean"), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= height:
            continue
        mine, theirs = F.adaptive_avg_pool2d(student, (side, side)), F.adaptive_avg_pool2d(teacher, (side, side))
        weight /= 2.0
        total = total + F.mse_loss(mine, theirs, reduction="mean") * weight
        weights += weight
    return total / weights


def reviewkd(loss, student, teacher):
    below, losses = None, []
    for fusion, mine, theirs in zip(loss.fusions, student[::-1], teacher[::-1], strict=True):
        fused = fusion.reduce(mine)
        if fusion.attend is not None:
            samples, _, height, width = fused.shape
            below = F.interpolate(below, (mine.shape[2], mine.shape[2]), mode="nearest")
            attention = fusion.attend(torch.cat([fused, below], dim=1))
            fused = fused * attention[:, 0].view(samples, 1, height, width) + below * attention[:, 1].view(
                samples, 1, height, width
            )
        if fused.shape[2] != theirs.shape[2]:
            fused = F.interpolate(fused, (theirs.shape[2], theirs.shape[2]), mode="nearest")
        below = fused
        losses.append(hcl(fusion.widen(fused), theirs))
    return sum(losses)


def semckd(loss, student, teacher):
    samples = student[0].shape[0]

    def embedded(layers, embeddings):
        rows = []
        for maps, embed in zip(layers, embeddings, strict=True):
            flat = maps.reshape(samples, -1)
            rows.append(F.normalize(embed(flat.mm(flat.t())), p=2, dim=1))
        return torch.stack(rows, dim=1)

    attention = F.softmax(
        torch.bmm(embedded(student, loss.queries), embedded(teacher, loss.keys).permute(0, 2, 1)), dim=-1
    )
    errors = torch.zeros(samples, len(student), len(teacher))
    for i, mine in enumerate(student):
        for j, theirs in enumerate(teacher):
            own, target = smaller(mine, theirs)
            projected = loss.projections[i][j](own)
            errors[:, i, j] = F.mse_loss(projected, target, reduction="none").reshape(samples, -1).mean(-1)
    return (attention * errors).sum() / (samples * len(student))


def catkd(loss, student, teacher, *, student_model, teacher_model):
    def reduced(maps, model):
        weight = model[-1].weight.unsqueeze(2).unsqueeze(3)
        maps = F.adaptive_avg_pool2d(F.conv2d(maps, weight, model[-1].bias), (loss.resolution, loss.resolution))
        return F.normalize(maps, dim=(2, 3)) if loss.normalize else maps

    with torch.no_grad():
        target = reduced(teacher, teacher_model)
    return F.mse_loss(reduced(student, student_model), target)


def byot(loss, student, *, labels):
    *maps, last, logits = student
    temperature = loss.divergence.temperature
    taught = F.softmax(logits.detach() / temperature, dim=1)
    total = 0.0
    for branch, classifier, features in zip(loss.branches, loss.classifiers, maps, strict=True):
        deep = branch(features)
        read = classifier(F.adaptive_avg_pool2d(deep, (1, 1)).flatten(1))
        total = total + (1 - loss.share) * F.cross_entropy(read, labels)
        log_read = F.log_softmax(read / temperature, dim=1)
        total = total + loss.share * F.kl_div(log_read, taught, reduction="batchmean") * temperature**2
        total = total + loss.features * ((deep - last.detach()) ** 2).mean()
    return total
