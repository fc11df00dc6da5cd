"""What ``--help`` says of each command: its description, and what comes after its arguments."""

DESCRIPTION = """\
Turn texts into vectors with the BERT models of sentence-transformers, on numpy,
without PyTorch; search texts by meaning; and look into, convert and download
such models. Where no --model is named, the one that comes with minibert is used.
"""
EPILOG = """\
examples:
  minibert encode "A sentence." "Another one."
  minibert encode --model all-MiniLM-L6-v2 --input texts.txt --output texts.npy
  minibert search "how do I cancel?" --input notes.txt
  minibert inspect BAAI/bge-small-en-v1.5

`minibert COMMAND --help` tells more about each command.
"""

ENCODE = """\
Turn texts into vectors, the same ones that sentence-transformers computes.
Row n of the output is text n of the input, whatever the format. An output file
appears whole, once everything has worked: a failed or interrupted run leaves
no file, and an old one as it was.
"""
ENCODE_EPILOG = """\
input:
  Text files hold one text a line, JSON lines one object a line with a string
  "text"; both are UTF-8. A blank line of a text file is an empty text, which
  has a vector like any other, so that lines and rows keep the same numbers.

output:
  jsonl         a line {"text": ..., "embedding": [...]} a text
  npy           one array of shape (texts, dimensions), for numpy.load
  safetensors   the same array, called "embeddings"; its metadata say which
                model and which options made it

examples:
  # two texts, as JSON lines on standard output, by the built-in model
  minibert encode "A sentence." "Another one."

  # a file, one text a line, to a numpy array
  minibert encode --model all-MiniLM-L6-v2 --input texts.txt --output texts.npy

  # texts that are questions, for a model that wants to know
  minibert encode --model intfloat/e5-small-v2 --prompt "query: " \\
      "why is the sky blue"

  # in a pipe
  zcat texts.gz | minibert encode --model ./my-model | jq -c .embedding
"""

INDEX = """\
Encode texts once and keep them, with their vectors, in a file that
`minibert search` reads. The file appears whole, once everything has worked: a
failed or interrupted run leaves no file, and an old one as it was.
"""
INDEX_EPILOG = """\
input:
  Text files hold one text a line, JSON lines one object a line with a string
  "text"; both are UTF-8. Blank texts, and blank lines of a text file, are left
  out; the others keep the numbers of their lines.

output:
  One safetensors file, with the model's name and a hash of its files: another
  model's questions are refused.

examples:
  minibert index --input notes.txt --output notes.safetensors

  # a model that needs to know which text is a question: the index keeps it
  minibert index --model intfloat/e5-small-v2 --input docs.jsonl \\
      --document-prompt "passage: " --query-prompt "query: " \\
      --output docs.safetensors

  # in a pipe
  zcat notes.gz | minibert index --output notes.safetensors
"""

SEARCH = """\
Find the texts that are nearest in meaning to each question: among those of a
file or of standard input, or in an index. Every text is compared, none is
passed over. Without a QUESTION, questions are read from standard input, one a
line, and each is answered at once.
"""
SEARCH_EPILOG = """\
input:
  As for `minibert index`, whose file saves the time of encoding the texts
  again. An index knows its model; one that was not made by the built-in model
  still wants it to be named, so that no file decides what is fetched.

output:
  A line for each text that was found: the score, the line of the text, the
  text; the best first. A score is what the model compares by, mostly the cosine
  (1 for the same meaning); a distance is shown as a negative number. Control
  characters of a text are escaped, and lines are cut to the width of a
  terminal. With --json, a line {"query": ..., "rank": ..., "score": ...,
  "line": ..., "text": ...} for each, with nothing changed.

examples:
  cat notes.txt | minibert search "how do I cancel?"
  minibert search "how do I cancel?" "what does it cost?" --input notes.txt

  # in an index; questions from the terminal, or a file
  minibert search --index notes.safetensors
  minibert search --index notes.safetensors --json < questions.txt

  # with the model that made the index
  minibert search --model intfloat/e5-small-v2 --index docs.safetensors \\
      "why is the sky blue"
"""

INSPECT = """\
Print what a model repo asks for: architecture, weights, pooling, maximum
length, casing, prompts, files; and in which of these points other runtimes
would give other vectors. Nothing is computed, but all files are checked as for
loading, except for the values of the weights.
"""
INSPECT_EPILOG = """\
examples:
  minibert inspect BAAI/bge-small-en-v1.5
  minibert inspect ./my-model
  minibert inspect --json ./my-model | jq .differences
"""

CONVERT = """\
Write a model repo again with all its weights as safetensors, under the names
that BertModel gives them: from pytorch_model.bin, from shards, from checkpoints
with prefixes, heads or old names. The result has every file that encoding
needs, works in minibert and in sentence-transformers, and with float32 gives
the very same vectors. It appears whole or not at all.
"""
CONVERT_EPILOG = """\
float16 halves the size on disk and rounds each weight to 11 significant bits,
which moves the vectors a little. They are computed in float32 all the same:
config.json says float32 also then, or sentence-transformers would compute in
float16.

examples:
  minibert convert ./old-model ./new-model
  minibert convert ./my-model ./my-model-half --dtype float16
  minibert convert bert-base-uncased ./bert-base-uncased --overwrite
"""

DOWNLOAD = """\
Fetch the files of a hub repo that minibert needs into the cache and print the
folder where they are. Afterwards the model loads without a network.
"""
DOWNLOAD_EPILOG = """\
Private and gated repos need a token. It is taken from the environment variable
HF_TOKEN, or is the one that `hf auth login` has stored; as an argument, others
on the machine could see it.

examples:
  minibert download all-MiniLM-L6-v2
  minibert download BAAI/bge-small-en-v1.5 --revision main
  HF_TOKEN=$(cat token) minibert download my-company/private-model
  cp -rL "$(minibert download all-MiniLM-L6-v2)" ./all-MiniLM-L6-v2
"""
