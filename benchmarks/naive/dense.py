"""Losses on dense maps and tokens, and on embeddings, as mmrazor, cls_KD and the authors' own code write them."""

import torch
import torch.nn.functional as F


def mgd(loss, student, teacher):
    aligned = loss.aligners[0](student)
    samples, channels = aligned.shape[:2]
    draws = torch.rand((samples, channels, 1, 1))
    mask = torch.where(draws > 1 - loss.ratio, 0, 1)
    generated = loss.generators[0](torch.mul(aligned, mask))
    return F.mse_loss(generated, teacher, reduction="sum") / samples


def cwd(loss, student, teacher):
    samples, channels, height, width = student.shape
    of_teacher = F.softmax(teacher.view(-1, width * height) / loss.temperature, dim=1)
    log_teacher = F.log_softmax(teacher.view(-1, width * height) / loss.temperature, dim=1)
    log_student = F.log_softmax(student.view(-1, width * height) / loss.temperature, dim=1)
    total = torch.sum(of_teacher * log_teacher - of_teacher * log_student) * loss.temperature**2
    return total / (channels * samples)


def pkd(loss, student, teacher):
    def norm(maps):
        samples, channels, height, width = maps.shape
        rows = maps.permute(1, 0, 2, 3).reshape(channels, -1)
        rows = (rows - rows.mean(dim=-1, keepdim=True)) / (rows.std(dim=-1, keepdim=True) + 1e-6)
        return rows.reshape(channels, samples, height, width).permute(1, 0, 2, 3)

    return F.mse_loss(norm(student), norm(teacher)) / 2


def fbkd(loss, student, teacher):
    (adapt,) = loss.adapters
    samples, _, height, width = student.shape

    def attention(maps):
        strength = torch.mean(torch.abs(maps), [1], keepdim=True).view(samples, -1)
        return (F.softmax(strength / loss.temperature, dim=1) * height * width).view(samples, 1, height, width)

    def answered(maps, block):
        """Every position with every other, as the paper's non-local block does."""
        query = block.query(maps).view(samples, -1, height * width).permute(0, 2, 1)
        key = block.key(maps).view(samples, query.shape[2], -1)
        value = block.value(maps).view(samples, query.shape[2], -1).permute(0, 2, 1)
        pairs = torch.matmul(query, key) / key.shape[-1]
        answer = torch.matmul(pairs, value).permute(0, 2, 1).contiguous().view(samples, -1, height, width)
        return block.out(answer) + maps

    mask = ((attention(student) + attention(teacher)) / 2).detach()
    difference = (adapt["features"](student) - teacher).pow(2) * mask
    features = difference.sum().sqrt()
    channels = torch.dist(adapt["channels"](student.mean([2, 3])), teacher.mean([2, 3]))
    positions = torch.dist(adapt["positions"](student.mean([1], keepdim=True)), teacher.mean([1], keepdim=True))
    own, theirs = answered(student, adapt["student"]), answered(teacher, adapt["teacher"])
    relations = torch.dist(adapt["relations"](own), theirs)
    return loss.features * features + loss.channels * channels + loss.positions * positions + loss.relations * relations


def vitkd(loss, student, teacher):
    samples = student[0].shape[0]
    own = torch.stack([align(tokens) for align, tokens in zip(loss.aligners, student[:-1], strict=False)], dim=1)
    imitation = F.mse_loss(own, torch.stack(teacher[:-1], dim=1), reduction="sum") / samples * loss.shallow
    tokens, target = loss.aligners[-1](student[-1]), teacher[-1]
    _, length, width = tokens.shape
    kept = int(length * (1 - loss.ratio))
    shuffle = torch.argsort(torch.rand(samples, length), dim=1)
    restore = torch.argsort(shuffle, dim=1)
    visible = torch.gather(tokens, 1, shuffle[:, :kept].unsqueeze(-1).repeat(1, 1, width))
    mask = torch.ones([samples, length])
    mask[:, :kept] = 0
    mask = torch.gather(mask, 1, restore)
    filled = torch.cat([visible, loss.mask_token.repeat(samples, length - kept, 1)], dim=1)
    filled = torch.gather(filled, 1, restore.unsqueeze(-1).repeat(1, 1, width))
    side = int(length**0.5)
    grid = filled.reshape(samples, side, side, width).permute(0, 3, 1, 2)
    generated = loss.generator(grid).permute(0, 2, 3, 1).flatten(1, 2)
    difference = torch.mul(generated, mask.unsqueeze(-1)) - torch.mul(target, mask.unsqueeze(-1))
    return imitation + (difference**2).sum() / samples * loss.deep / loss.ratio


# Embeddings


def srrl(loss, student, teacher, *, teacher_head):
    connected = loss.connector(student[0])
    read = teacher_head(F.adaptive_avg_pool2d(connected, 1).view(len(connected), -1))
    own, target = (F.adaptive_avg_pool2d(each, 1).view(each.size(0), -1) for each in (connected, teacher[0]))
    of_features = (own - target).pow(2).mean()
    return loss.features * of_features + loss.logits * F.mse_loss(read, teacher[1])


def simkd(loss, student, teacher):
    if student.shape[2] > teacher.shape[2]:
        student = F.adaptive_avg_pool2d(student, (teacher.shape[2], teacher.shape[2]))
    elif student.shape[2] < teacher.shape[2]:
        teacher = F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[2]))
    return F.mse_loss(loss.projector[1](student), teacher)


def vkd(loss, student, teacher):
    target = F.layer_norm(teacher, (teacher.shape[1],))
    return F.smooth_l1_loss(loss.projector(student), target)


def srd(loss, student, teacher):
    own = F.batch_norm(loss.projector(student), None, None, training=True, eps=1e-4)
    target = F.batch_norm(teacher, None, None, training=True, eps=1e-4)
    return torch.log(torch.abs(own - target).pow(loss.exponent).sum())
