package appfile_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestFiles reads each testdata/*.toml and compares with the .json or, where it has problems, the .err
// beside it. Files named allow-*.toml are read with unsupported keys allowed.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			allow := strings.HasPrefix(filepath.Base(path), "allow-")
			f, err := appfile.Parse("volant.toml", b, appfile.Options{AllowUnsupported: allow})
			end, got := "json", asJSON(t, f)
			if err != nil {
				end, got = "err", err.Error()+"\n"
				if !errors.Is(err, volant.ErrInvalid) {
					t.Errorf("%v is not ErrInvalid", err)
				}
			}
			golden := strings.TrimSuffix(path, "toml") + end
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; got\n%s", err, got)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func asJSON(t *testing.T, f *appfile.File) string {
	t.Helper()
	out, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out) + "\n"
}

func TestApplyScaleChangesOnlyWhatTheFileSays(t *testing.T) {
	f, err := appfile.Parse("volant.toml", []byte("[scale]\nmin = 0\nidle_timeout = \"5s\"\n"), appfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := f.ApplyScale(volant.Scale{Min: 3, Max: 7, IdleTimeout: volant.Duration(time.Hour)})
	if diff := cmp.Diff(volant.Scale{Max: 7, IdleTimeout: volant.Duration(5 * time.Second)}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestATooLargeFileIsRefused(t *testing.T) {
	_, err := appfile.Parse("volant.toml", make([]byte, 1<<20), appfile.Options{})
	if !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := appfile.Parse("f", b, appfile.Options{AllowUnsupported: true})
		if err != nil {
			if !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		if err := got.Config.Guest.Check(); err != nil {
			t.Error(err)
		}
		if err := got.Scale.Check(); err != nil {
			t.Error(err)
		}
		for _, s := range got.Config.Services {
			if err := s.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}
