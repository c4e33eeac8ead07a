"""`ftkit serve`: OpenAI's endpoints for files, fine-tuning, models, chat and batches, with a real trainer.

This package implements no hooks: it adds a command (`ftkit_serve.command:serve`, entry-point group `ftkit.commands`).
It is light: the command imports FastAPI and uvicorn when it runs, and torch when it loads the first model.

- command: options, lock, socket. http_server: limits of connections. app: the FastAPI application.
- state: the parts that the routes share. shortage: a full disk and other shortages, the limit of the log.
- routes_*: one file per endpoint. wire: request bodies. middleware, errors.
- store: the database. files: uploaded files. chats: training files. models: base models and hyperparameters.
- jobs: the queue of fine-tuning jobs. worker: the training process. events: a job's events. finish: a job's results.
- engine: loaded models. chat: chat requests and responses. batches: batch jobs.
"""
