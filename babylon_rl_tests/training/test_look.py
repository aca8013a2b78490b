from babylon_rl_tests.training.test_commands import command
def test_look(command):
    for a in (["train","--iterations","2"],["models"],["batches"],["ready"],["score","--dry-run"],["sync-outcomes"]):
        r=command(*a); print("$",a,r.returncode); print(r.stdout[:3000]); print("ERR",r.stderr[-1500:])
