"""Losses on logits, as RepDistiller, mdistiller, cls_KD, TRL and the authors' own code write them."""

import torch
import torch.nn.functional as F


def kd(loss, student, teacher):
    log_student = F.log_softmax(student / loss.temperature, dim=1)
    of_teacher = F.softmax(teacher / loss.temperature, dim=1)
    return F.kl_div(log_student, of_teacher, reduction="sum") * loss.temperature**2 / student.shape[0]


def logits(loss, student, teacher):
    return F.mse_loss(student, teacher)


def hard(loss, student, teacher):
    return F.cross_entropy(student, teacher.argmax(dim=1))


def reverse_kl(loss, student, teacher):
    of_student, log_student = F.softmax(student, dim=1), F.log_softmax(student, dim=1)
    return (of_student * (log_student - F.log_softmax(teacher, dim=1))).sum(dim=1).mean()


def jsd(loss, student, teacher):
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    beta = torch.tensor(loss.beta)
    mixture = torch.logsumexp(torch.stack([log_student + torch.log(1 - beta), log_teacher + torch.log(beta)]), dim=0)
    of_teacher = F.kl_div(mixture, log_teacher, reduction="none", log_target=True)
    of_student = F.kl_div(mixture, log_student, reduction="none", log_target=True)
    return (beta * of_teacher + (1 - beta) * of_student).sum() / student.shape[0]


def tv(loss, student, teacher):
    return 0.5 * (F.softmax(student, dim=1) - F.softmax(teacher, dim=1)).abs().sum(dim=1).mean()


def standardized(logits):
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


def lskd(loss, student, teacher):
    return kd(loss, standardized(student), standardized(teacher))


def own_mask(logits, labels):
    return torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), 1).bool()


def other_mask(logits, labels):
    return torch.ones_like(logits).scatter_(1, labels.unsqueeze(1), 0).bool()


def two_masses(probabilities, own, others):
    first = (probabilities * own).sum(dim=1, keepdim=True)
    return torch.cat([first, (probabilities * others).sum(1, keepdim=True)], dim=1)


def dkd(loss, student, teacher, *, labels):
    own, others, temperature = own_mask(student, labels), other_mask(student, labels), loss.temperature
    of_student = two_masses(F.softmax(student / temperature, dim=1), own, others)
    of_teacher = two_masses(F.softmax(teacher / temperature, dim=1), own, others)
    scale = temperature**2 / labels.shape[0]
    target = F.kl_div(torch.log(of_student), of_teacher, reduction="sum") * scale
    rest_of_teacher = F.softmax(teacher / temperature - 1000.0 * own, dim=1)
    rest_of_student = F.log_softmax(student / temperature - 1000.0 * own, dim=1)
    rest = F.kl_div(rest_of_student, rest_of_teacher, reduction="sum") * scale
    return loss.alpha * target + loss.beta * rest


def nkd(loss, student, teacher, *, labels):
    samples, classes = student.shape
    own = labels.unsqueeze(1)
    target = (F.softmax(teacher, dim=1).gather(1, own).detach() * F.log_softmax(student, dim=1).gather(1, own)).mean()
    mask = torch.ones_like(student).scatter_(1, own, 0).bool()
    student, teacher = student[mask].reshape(samples, classes - 1), teacher[mask].reshape(samples, classes - 1)
    of_teacher = F.softmax(teacher / loss.temperature, dim=1)
    rest = (of_teacher * F.log_softmax(student / loss.temperature, dim=1)).sum(dim=1).mean()
    return -target - loss.gamma * loss.temperature**2 * rest


def uskd(loss, student, *, labels):
    maps, logits = student
    weak = loss.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))
    samples, classes = logits.shape
    own = labels.unsqueeze(1)
    probabilities, log_probabilities = F.softmax(logits, dim=1), F.log_softmax(logits, dim=1)
    squared = probabilities.gather(1, own).detach() ** 2
    target = -((squared + 1 - squared.mean()) * log_probabilities.gather(1, own)).mean()
    mask = torch.ones_like(logits).scatter_(1, own, 0).bool()
    rest = logits[mask].reshape(samples, classes - 1)
    weak_rest = weak[mask].reshape(samples, classes - 1)
    score = (F.softmax(rest, dim=1) + F.softmax(weak_rest, dim=1)).detach()
    places = score.sort(dim=1, descending=True)[1].sort(dim=1)[1]
    zipf = 1 / torch.arange(1, classes, dtype=logits.dtype)
    zipf = (zipf / zipf.sum()).expand(samples, -1).gather(1, places)
    others = -(zipf * F.log_softmax(rest, dim=1)).sum(dim=1).mean()
    smoothed = torch.full_like(weak, 0.1 / classes).scatter_(1, own, 0.9 + 0.1 / classes)
    of_head = -(smoothed * F.log_softmax(weak, dim=1)).sum(dim=1).mean()
    return loss.alpha * target + loss.beta * others + loss.mu * of_head


def cosine(first, second, eps=1e-8):
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + eps)


def pearson(first, second):
    return cosine(first - first.mean(1).unsqueeze(1), second - second.mean(1).unsqueeze(1))


def dist(loss, student, teacher):
    student, teacher = (student / loss.temperature).softmax(dim=1), (teacher / loss.temperature).softmax(dim=1)
    between = loss.temperature**2 * (1 - pearson(student, teacher).mean())
    within = loss.temperature**2 * (1 - pearson(student.transpose(0, 1), teacher.transpose(0, 1)).mean())
    return loss.beta * between + loss.gamma * within


def wsld(loss, student, teacher, *, labels):
    log_student = F.log_softmax(student / loss.temperature, dim=1)
    of_teacher = F.softmax(teacher / loss.temperature, dim=1)
    soft = -(loss.temperature**2) * (of_teacher * log_student).sum(dim=1, keepdim=True)
    one_hot = torch.zeros_like(student).scatter_(1, labels.unsqueeze(1), 1)
    of_student = -(one_hot * F.log_softmax(student.detach(), dim=1)).sum(dim=1, keepdim=True)
    of_teacher = -(one_hot * F.log_softmax(teacher.detach(), dim=1)).sum(dim=1, keepdim=True)
    ratio = torch.maximum(of_student / (of_teacher + 1e-7), torch.zeros_like(of_student))
    return ((1 - torch.exp(-ratio)) * soft).mean()


def mlkd(loss, student, teacher):
    total = 0
    samples, classes = student.shape
    for temperature in loss.temperatures:
        of_student, of_teacher = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
        log_student = F.log_softmax(student / temperature, dim=1)
        divergence = F.kl_div(log_student, of_teacher, reduction="none").sum(1).mean() * temperature**2
        by_class = torch.mm(of_teacher.transpose(1, 0), of_teacher) - torch.mm(of_student.transpose(1, 0), of_student)
        by_batch = torch.mm(of_teacher, of_teacher.transpose(1, 0)) - torch.mm(of_student, of_student.transpose(1, 0))
        total = total + divergence + (by_class**2).sum() / classes + (by_batch**2).sum() / samples
    return total


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context, value, strength):
        context.strength = strength
        return value * 1

    @staticmethod
    def backward(context, gradient):
        return -context.strength * gradient, None


def ctkd(loss, student, teacher, *, epoch):
    parameter = Reversed.apply(loss.learned.parameter, loss._strength(epoch))
    temperature = loss.lowest + loss.span * torch.sigmoid(parameter)
    log_student, of_teacher = F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, of_teacher, reduction="sum") * temperature.squeeze() ** 2 / student.shape[0]


def transformed(loss, teacher):
    powers = torch.pow(F.softmax(teacher, dim=1), loss.exponent)
    sums = powers.sum(dim=1, keepdim=True)
    return powers / sums, sums


def ttm(loss, student, teacher):
    of_teacher, _ = transformed(loss, teacher)
    return F.kl_div(F.log_softmax(student, dim=1), of_teacher, reduction="batchmean")


def wttm(loss, student, teacher):
    of_teacher, sums = transformed(loss, teacher)
    divergence = F.kl_div(F.log_softmax(student, dim=1), of_teacher, reduction="none").sum(dim=1)
    return (sums.squeeze(1) * divergence).mean()


def tfkd(loss, student, *, labels):
    samples, classes = student.shape
    teacher = torch.ones_like(student) * (1 - loss.correct) / (classes - 1)
    for index in range(samples):
        teacher[index, labels[index]] = loss.correct
    of_teacher = F.softmax(torch.log(teacher) / loss.temperature, dim=1)
    log_student = F.log_softmax(student / loss.temperature, dim=1)
    return F.kl_div(log_student, of_teacher, reduction="batchmean") * loss.temperature**2


def ofa_loss(loss, student, teacher, target):
    of_student, of_teacher = F.softmax(student / loss.temperature, dim=1), F.softmax(teacher / loss.temperature, dim=1)
    product = (of_teacher + target) ** loss.epsilon
    return torch.sum(-(product - target) * torch.log(of_student), dim=-1).mean()


def ofa(loss, student, teacher, *, labels):
    *features, logits = student
    target = F.one_hot(labels, logits.shape[1])
    losses = [ofa_loss(loss, head(maps), teacher, target) for head, maps in zip(loss.heads, features, strict=True)]
    return sum(losses) + ofa_loss(loss, logits, teacher, target)


def rld(loss, student, teacher, *, labels):
    own, others = own_mask(student, labels), other_mask(student, labels)
    decided = teacher.argmax(dim=1)
    temperature = loss.confidence_temperature
    of_student = two_masses(F.softmax(student / temperature, dim=1), own, others)
    decided_own, decided_others = own_mask(teacher, decided), other_mask(teacher, decided)
    of_teacher = two_masses(F.softmax(teacher / temperature, dim=1), decided_own, decided_others)
    confidence = F.kl_div(torch.log(of_student), of_teacher, reduction="sum") * temperature**2 / labels.shape[0]
    above = torch.ge(teacher, teacher.gather(1, labels.unsqueeze(1)).expand_as(teacher))
    rest_of_teacher = F.softmax(teacher / loss.temperature - 1000.0 * above, dim=1)
    rest_of_student = F.log_softmax(student / loss.temperature - 1000.0 * above, dim=1)
    rest = F.kl_div(rest_of_student, rest_of_teacher, reduction="sum") * loss.temperature**2 / labels.shape[0]
    return loss.alpha * confidence + loss.beta * rest


def annealed(loss, student, teacher, *, epoch):
    temperature = max(1.0, loss.highest - epoch // loss.epochs_each)
    phi = 1 - (temperature - 1) / loss.highest
    return F.mse_loss(student, teacher * phi)


def cosub(loss, student, *, inputs, labels, student_model):
    second = student_model(inputs)
    targets = F.one_hot(labels, student.shape[1]).to(student.dtype)
    of_labels = F.binary_cross_entropy_with_logits(torch.cat([student, second]), torch.cat([targets, targets]))
    first_follows = F.binary_cross_entropy_with_logits(student, torch.sigmoid(second).detach())
    second_follows = F.binary_cross_entropy_with_logits(second, torch.sigmoid(student).detach())
    return 0.5 * of_labels + 0.25 * first_follows + 0.25 * second_follows
