# %% [markdown]
# MNIST by asynchronous SGD, cell by cell. Open it as a notebook, or run it as a script:
#
#     python examples/mnist_notebook.py

# %%
import tardygrad as tg

# %% Four workers, two servers, one epoch: half a minute at most.
result = tg.train(recipe="mnist-async", epochs=1)

# %% What came out.
print(result.metrics)
print("mean staleness", result.summary["staleness"]["mean"])
print("curves", result.curves)

# %% Every sample counted once; here is the proof.
print(tg.audit(result.run_directory).verdict())

# %% The trained module is an ordinary one.
print(result.model)

# %% Stale updates take smaller steps, and nobody runs ahead: the same run, other settings.
careful = tg.train(
    recipe="mnist-async",
    epochs=1,
    method=tg.methods.AsyncSGD(
        optimizer={"class": "SGD", "arguments": {"lr": 0.1}},
        staleness={"name": "inverse"},
        consistency={"name": "ssp", "bound": 2},
    ),
)
print(careful.metrics, careful.summary["staleness"])
