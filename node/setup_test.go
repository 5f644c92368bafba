package node_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/node"
)

func TestKernelDirLeavesADirectoryThatAServerTakes(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	kernel, err := node.KernelDir(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(kernel, "kernel.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := datadir.Open(data)
	if err != nil {
		t.Fatalf("a server refuses the data directory: %v", err)
	}
	defer dir.Close() // the test ends
	if again, err := node.KernelDir(data); err != nil || again != kernel {
		t.Errorf("with a server that runs: %q, %v; want %q", again, err, kernel)
	}
}

func TestKernelDirRefusesWhatIsSomebodyElses(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if dir, err := node.KernelDir(data); err == nil {
		t.Errorf("it would write to %s", dir)
	}
}

func TestRestoreOfABadCopyLeavesTheStoreAlone(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	if _, err := node.Restore(t.Context(), node.RestoreConfig{Data: data}); err == nil {
		t.Fatal("there was nothing to restore, and no error")
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a restore which could not begin has made a data directory")
	}
	if _, err := node.KernelDir(data); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(data, "etcd", "mark")
	bad := filepath.Join(t.TempDir(), "copy.db")
	for _, err := range []error{
		os.Mkdir(filepath.Join(data, "etcd"), 0o700), os.WriteFile(mark, nil, 0o600), os.WriteFile(bad, []byte("no database"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := node.Restore(t.Context(), node.RestoreConfig{Data: data, From: bad}); err == nil {
		t.Fatal("a file that is no copy was restored")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the old store is not where it was: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(data, "etcd.old-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
