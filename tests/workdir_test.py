from segjax.workdir import Workdir


def test_starts_are_noted_one_a_line(tmp_path):
  workdir = Workdir(str(tmp_path))
  assert workdir.read_starts() == []
  starts = [{'step': 0, 'commit': 'a'}, {'step': 5, 'commit': None}]
  for start in starts:
    workdir.note_start(start)
  assert workdir.read_starts() == starts
  with workdir.starts.open('a') as file:
    file.write('{"step": 7, "com')  # cut short by a kill
  assert workdir.read_starts() == starts
