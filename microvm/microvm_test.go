package microvm_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/microvm"
)

func TestSpecCheck(t *testing.T) {
	good := microvm.Spec{
		ID: "3d8d-a_B", VCPUs: 1, MemoryMiB: 512, Drives: []microvm.Drive{{Path: "/x"}},
		NICs: []microvm.NIC{{Tap: "t", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}},
	}
	if err := good.Check(); err != nil {
		t.Errorf("a good spec: %v", err)
	}
	for name, harm := range map[string]func(*microvm.Spec){
		"no ID":              func(s *microvm.Spec) { s.ID = "" },
		"an ID with a slash": func(s *microvm.Spec) { s.ID = "../x" },
		"an ID with a comma": func(s *microvm.Spec) { s.ID = "a,b" },
		"a long ID":          func(s *microvm.Spec) { s.ID = strings.Repeat("x", 65) },
		"no vCPU":            func(s *microvm.Spec) { s.VCPUs = 0 },
		"no memory":          func(s *microvm.Spec) { s.MemoryMiB = 0 },
		"many drives":        func(s *microvm.Spec) { s.Drives = make([]microvm.Drive, 9) },
		"a nameless drive":   func(s *microvm.Spec) { s.Drives = make([]microvm.Drive, 1) },
		"a nameless tap":     func(s *microvm.Spec) { s.NICs = make([]microvm.NIC, 1) },
	} {
		s := good
		harm(&s)
		if err := s.Check(); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestManifest(t *testing.T) {
	dir := t.TempDir()
	s := microvm.Snapshot{Dir: dir, Engine: "fake", VMID: "a", MemSize: 4, Template: true}
	if err := s.WriteManifest(); err != nil {
		t.Fatal(err)
	}
	got, err := microvm.ReadSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Errorf("the manifest came back changed:\n%s", d)
	}
	names, err := filepath.Glob(dir + "/*")
	if err != nil || len(names) != 1 {
		t.Errorf("files %q, %v", names, err)
	}
	for _, text := range []string{"", "{", "[]", `{"vcpus":"x"}`, strings.Repeat(" ", 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, microvm.ManifestFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := microvm.ReadSnapshot(dir); !errors.Is(err, microvm.ErrIncompatible) {
			t.Errorf("a manifest of %.10q: error %v", text, err)
		}
	}
	if _, err := microvm.ReadSnapshot(dir + "/none"); !errors.Is(err, microvm.ErrIncompatible) {
		t.Errorf("no snapshot: error %v", err)
	}
}
