"""A network of PyTorch: reports each epoch, ends where it is pruned, and goes on from its checkpoint."""

import io

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
EPOCHS, TRAINED_WITH = 10, 1200


def objective(trial):
    torch.manual_seed(trial.seed)
    hidden, dropout = trial.params["hidden"], trial.params["dropout"]
    network = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=trial.params["lr"], momentum=0.9)
    begin, accuracy = 0, 0.0
    if "checkpoint.pt" in trial.artifacts:  # an attempt before this one came so far
        kept = torch.load(io.BytesIO(trial.load("checkpoint.pt")))
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        begin, accuracy = kept["epoch"] + 1, kept["accuracy"]
    for epoch in range(begin, EPOCHS):
        network.train()
        for batch in torch.randperm(TRAINED_WITH).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X[batch]), y[batch]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(X[TRAINED_WITH:]).argmax(1) == y[TRAINED_WITH:]
        accuracy = right.float().mean().item()
        kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        file = io.BytesIO()
        torch.save({**kept, "epoch": epoch, "accuracy": accuracy}, file)
        trial.save("checkpoint.pt", file.getvalue())
        if trial.report(accuracy, epoch):
            break
    return accuracy
