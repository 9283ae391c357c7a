"""The whole benchmark: FoE, MNIST and the default with its parts left out, beside the problems of `bench_methods`."""

from experiments.benchmarks import bench_methods

if __name__ == "__main__":
    bench_methods.main(full=True)
