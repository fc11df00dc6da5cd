"""The texts of ``--help``: the description of each command, and the text after its arguments."""

DESCRIPTION = """\
Turn texts into vectors with BERT models in the format of sentence-transformers.
Search texts by meaning. Serve vectors over HTTP. Inspect, convert and download
models. The computation uses numpy, not PyTorch. Without --model, the commands
use the built-in model.
"""
EPILOG = """\
examples:
  minibert encode "A sentence." "Another one."
  minibert encode --model all-MiniLM-L6-v2 --input texts.txt --output texts.npy
  minibert search "how do I cancel?" --input notes.txt
  minibert inspect BAAI/bge-small-en-v1.5

`minibert COMMAND --help` describes each command.
"""

ENCODE = """\
Turn texts into vectors. They are the vectors that sentence-transformers
computes. Row n of the output belongs to text n of the input, in every format.
Memory use does not grow with the number of texts.
"""
ENCODE_EPILOG = """\
input:
  A text file has one text on each line. A JSON lines file has one object on
  each line, with a string "text". Both are UTF-8. A blank line in a text file
  is an empty text. It gets a vector too, so line n is always row n.
  All lines of a file are checked before the model is loaded. The lines of a
  pipe are checked as they arrive.

output:
  jsonl         a line {"text": ..., "embedding": [...]} for each text
  npy           one array of shape (texts, dimensions), for numpy.load
  safetensors   the same array with the name "embeddings"; the metadata tell
                the model, the options and the number of texts

  If the input is JSON lines, an output line keeps all fields of its input
  line. The new embedding comes last; it replaces an old one. With --fields
  text, an output line has only the text and the embedding.
  A file appears only after everything has worked. If a run fails or is
  interrupted, there is no new file, and an old file is unchanged. The output
  must not be the input file. Standard output gets vectors chunk by chunk.
  int8 and uint8 need all vectors first. Until then the vectors are in a
  temporary file, in the folder of the output.

examples:
  # two texts, as JSON lines on standard output, with the built-in model
  minibert encode "A sentence." "Another one."

  # a file with one text on each line, to a numpy array
  minibert encode --model all-MiniLM-L6-v2 --input texts.txt --output texts.npy

  # questions, for a model that has a prompt for them
  minibert encode --model intfloat/e5-small-v2 --prompt "query: " \\
      "why is the sky blue"

  # in a pipe
  zcat texts.gz | minibert encode --model ./my-model | jq -c .embedding
"""

INDEX = """\
Encode texts once and write them to a file, with their vectors. `minibert
search` reads this file. The file appears only after everything has worked. If
a run fails or is interrupted, there is no new file, and an old file is
unchanged. The output must not be the input file.
"""
INDEX_EPILOG = """\
input:
  A text file has one text on each line. A JSON lines file has one object on
  each line, with a string "text". Both are UTF-8. Blank texts are left out.
  The other texts keep their line numbers.

output:
  One safetensors file. It also has the name of the model and a hash of the
  model's files. A search with another model is an error.

examples:
  minibert index --input notes.txt --output notes.safetensors

  # a model with different prompts for texts and questions
  minibert index --model intfloat/e5-small-v2 --input docs.jsonl \\
      --document-prompt "passage: " --query-prompt "query: " \\
      --output docs.safetensors

  # in a pipe
  zcat notes.gz | minibert index --output notes.safetensors
"""

SEARCH = """\
Find the texts that are nearest in meaning to each question. The texts are in a
file, on standard input or in an index. The search is exact: it compares each
question with every text. Without a QUESTION, the command reads questions from
standard input, one on each line, and answers each one immediately.
"""
SEARCH_EPILOG = """\
input:
  The same as for `minibert index`. With an index, the texts are not encoded
  again. If an index was not made with the built-in model, give its model with
  --model: a file must not decide what is downloaded.

output:
  One line for each text that was found: the score, the line number, the text.
  The best text comes first. The score is the model's similarity, usually the
  cosine (1 means the same direction). A distance is shown as a negative number.
  Control characters are escaped. On a terminal, long lines are cut.
  With --json, there is one JSON object for each text that was found:
  {"query": ..., "rank": ..., "score": ..., "line": ..., "text": ...}. Its
  text is complete.

examples:
  cat notes.txt | minibert search "how do I cancel?"
  minibert search "how do I cancel?" "what does it cost?" --input notes.txt

  # in an index; questions from the terminal, or from a file
  minibert search --index notes.safetensors
  minibert search --index notes.safetensors --json < questions.txt

  # with the model that made the index
  minibert search --model intfloat/e5-small-v2 --index docs.safetensors \\
      "why is the sky blue"
"""

EXPLAIN = """\
Look into the model. For one text, print what each part of the model added to
its vector at each token. For two texts, print which pairs of words make them
similar. With --html, write a page with every step of the computation.
"""
EXPLAIN_EPILOG = """\
output:
  On a terminal, a map in colours. If NO_COLOR is set, or in a pipe, there are
  no colours. If the map is too large for the terminal, the largest numbers are
  listed. Pairs of words are approximate: their error is printed. Where they
  would take more than about half a minute (long texts, large models), there are
  pairs of token vectors instead, which are exact.
  The page of --html is one file that needs no network: the source of the
  forward pass beside its results, attention, tokens, and similarity.

examples:
  minibert explain "A man is eating food."
  minibert explain "A man is eating food." "Someone is having a meal."
  minibert explain "A man is eating food." "Someone is having a meal." \\
      --html food.html
"""

EMBED = """\
Turn the texts in files into vectors, as a job that can be interrupted. After a
crash, a full disk or a lost machine, give the same command again: it goes on
where it stopped, and the result has the same bytes. Memory use does not grow
with the input.
"""
EMBED_EPILOG = """\
input:
  Text (.txt), JSON lines (.jsonl, .ndjson), CSV (.csv, .tsv), Parquet
  (.parquet) or Arrow (.arrow, .feather, .ipc). The first three can be
  compressed (.gz). All files have one format. The files of a folder and of a
  pattern are sorted by name. All rows are checked before the model is loaded.
  Parquet and Arrow need pyarrow: pip install "minibert[jobs]".

output:
  part-N-of-M.*      the shards: id, columns and "embedding" as Parquet; or
                     vectors as .npy, and the rest as JSON lines
  _part-N-of-M.json  the hashes of a shard, which is complete with this file
  _job.json          the plan: input, model, options, versions
  _manifest.json     all hashes; a finished job has it

  Each file is written completely or not at all. A command with another plan is
  refused; the message names the difference. With native kernels, a job can
  move between machines with different processors.

examples:
  minibert embed texts.jsonl --column body --id-column key --output vectors
  minibert embed 'data/*.parquet' --output vectors --precision float16
  minibert embed --verify vectors

  # on four machines, in a folder that they share
  minibert embed data --output vectors --shards 1/4    # 2/4, 3/4, 4/4
"""

SERVE = """\
Serve the vectors of a model over HTTP. The server speaks the protocols of
OpenAI, text-embeddings-inference (TEI), Ollama and Cohere, so their clients
work with it. It computes the texts of concurrent requests together. A vector
has the same bits as in `minibert encode`. The command needs an extra:
pip install "minibert[serve]".
"""
SERVE_EPILOG = """\
routes:
  OpenAI    POST /v1/embeddings; GET /v1/models, /v1/models/ID
  TEI       POST /embed, /, /embed_all, /similarity, /tokenize, /decode; GET /info
  Ollama    POST /api/embed
  Cohere    POST /v2/embed, /v1/embed
  others    GET /health, /ping, /, /metrics

keys:
  Each line of the file of --api-key-file is a key. So is each line of the
  environment variable MINIBERT_API_KEY. There is no argument for a key, because
  other users of the machine can see arguments. Health checks and metrics need
  no key.

stopping:
  After SIGTERM, SIGINT or SIGHUP, health checks fail and new requests get 503.
  Requests in flight are answered. Then the exit status is 0.

examples:
  minibert serve
  minibert serve --model intfloat/e5-small-v2 --host 0.0.0.0 \\
      --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/embeddings \\
      -H "Content-Type: application/json" -d '{"input": "A sentence."}'
"""

INSPECT = """\
Print the facts about a model repo: architecture, weights, pooling, maximum
length, casing, prompts and files. Then print where other runtimes would
compute other vectors. All files are checked as for loading, except the values
of the weights. Nothing is computed.
"""
INSPECT_EPILOG = """\
examples:
  minibert inspect
  minibert inspect BAAI/bge-small-en-v1.5
  minibert inspect ./my-model
  minibert inspect --json ./my-model | jq .differences
"""

CONVERT = """\
Write a copy of a model repo with safetensors weights. The weights can come from
pytorch_model.bin, from several shards, or from a checkpoint with prefixes,
heads or old names. They get the names that transformers uses. The copy has
every file that encoding needs. It works in minibert and in
sentence-transformers. With float32, it gives exactly the same vectors. The
folder appears only after everything has worked. Links that lead out of the repo
are an error.
"""
CONVERT_EPILOG = """\
float16 halves the file size. Each weight is rounded to 11 significant bits, so
the vectors change a little. config.json still says float32: otherwise
sentence-transformers would compute in float16.

examples:
  minibert convert ./old-model ./new-model
  minibert convert ./my-model ./my-model-half --dtype float16
  minibert convert bert-base-uncased ./bert-base-uncased --overwrite
"""

DOWNLOAD = """\
Download the files of a hub repo that minibert needs. They go into the cache.
Then print their folder. After that, the model loads without a network.
"""
DOWNLOAD_EPILOG = """\
Private and gated repos need a token. Set the environment variable HF_TOKEN, or
run `hf auth login` first. There is no argument for the token, because other
users of the machine can see arguments.

examples:
  minibert download all-MiniLM-L6-v2
  minibert download BAAI/bge-small-en-v1.5 --revision main
  HF_TOKEN=$(cat token) minibert download my-company/private-model
  cp -rL "$(minibert download all-MiniLM-L6-v2)" ./all-MiniLM-L6-v2
"""
