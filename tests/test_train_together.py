"Two processes that share a training take the steps that one process would take on both of their batches."
import subprocess, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from zsad.train.tiny import Task, rng_of, train_step

class Line(Task):
    "A linear layer on random points."
    name = 'line'
    def build(self): return torch.nn.Linear(4, 1)
    def points(self, n): return torch.from_numpy(rng_of(self.seed, n).standard_normal((8, 5))).float()
    def batch(self, progress): return [self.points(self.step*self.world + self.rank)]
    def losses(self, b, progress): return dict(square=sum(F.mse_loss(self.net(x[:, :4]), x[:, 4:]) for x in b)/len(b))

class Both(Line):
    "One process that sees what two would."
    def batch(self, progress): return [self.points(2*self.step), self.points(2*self.step + 1)]

def trained(task, steps=5):
    for i in range(steps): train_step(task, .5)
    return task.net.state_dict()

def test_two_processes_are_one(tmp_path):
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', __file__, str(tmp_path)], check=True, timeout=300)
    first, second = (torch.load(tmp_path/f'{r}.pt', weights_only=True) for r in (0, 1))
    one, alone = trained(Both(tmp_path)), trained(Line(tmp_path))
    for k in one:
        assert torch.equal(first[k], second[k])
        torch.testing.assert_close(first[k], one[k], rtol=0, atol=1e-6)
        assert not torch.allclose(first[k], alone[k], rtol=0, atol=1e-6)

if __name__ == '__main__':
    import torch.distributed as dist
    dist.init_process_group('gloo')
    task = Line(sys.argv[1])
    torch.save(trained(task), Path(sys.argv[1])/f'{task.rank}.pt')
    dist.destroy_process_group()
