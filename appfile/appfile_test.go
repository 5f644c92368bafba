package appfile_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// configs are the config files of a folder, in any notation.
func configs(t testing.TB, dir string, least int) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join("testdata", dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	files := slices.DeleteFunc(all, func(f string) bool {
		return !slices.Contains([]string{".toml", ".yaml", ".json"}, filepath.Ext(f)) || strings.HasSuffix(f, ".want.json")
	})
	if len(files) < least {
		t.Fatalf("testdata/%s has %d files, want %d at least", dir, len(files), least)
	}
	return files
}

// parse reads a file as fly.toml, so that messages do not name the test's file.
func parse(t testing.TB, path string, opt appfile.Options) (*appfile.File, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	opt.ReadFile = func(name string) ([]byte, error) {
		if name == "nginx.conf" {
			return []byte("events {}\n"), nil
		}
		return nil, fmt.Errorf("open %s: %w", name, os.ErrNotExist)
	}
	return appfile.Parse("fly"+filepath.Ext(path), b, opt)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; got\n%s", err, got)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
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

func base(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) }

// TestGoodFiles compares what each file becomes with the .want.json beside it. Files named allow-* are
// read with unsupported keys allowed.
func TestGoodFiles(t *testing.T) {
	for _, path := range configs(t, "good", 5) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := parse(t, path, appfile.Options{AllowUnsupported: strings.HasPrefix(filepath.Base(path), "allow-")})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, base(path)+".want.json", asJSON(t, f))
		})
	}
}

// TestExamples reads files in the manner of public ones, as they are: they are deployed with --image.
func TestExamples(t *testing.T) {
	for _, path := range configs(t, "examples", 10) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := parse(t, path, appfile.Options{HasImage: true})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, base(path)+".want.json", asJSON(t, f))
		})
	}
}

// TestBadFiles compares the problems of each file with the .err beside it, to the letter.
func TestBadFiles(t *testing.T) {
	for _, path := range configs(t, "bad", 30) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, err := parse(t, path, appfile.Options{Strict: strings.HasPrefix(filepath.Base(path), "strict-")})
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			golden(t, base(path)+".err", err.Error()+"\n")
		})
	}
}

func TestATooLargeFileIsRefused(t *testing.T) {
	_, err := appfile.Parse("volant.toml", make([]byte, 1<<20), appfile.Options{})
	if !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestNotationsAgree(t *testing.T) {
	var first string
	for i, ext := range []string{"toml", "yaml", "json"} {
		f, err := parse(t, "testdata/good/notation."+ext, appfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := asJSON(t, f); i == 0 {
			first = got
		} else if diff := cmp.Diff(first, got); diff != "" {
			t.Errorf("%s (-toml +%s):\n%s", ext, ext, diff)
		}
	}
}

func TestARegionOfTheCallerTakesThePlaceOfTheFiles(t *testing.T) {
	b := []byte("primary_region = \"ams\"\n[http_service]\nmin_machines_running = 2\n")
	f, err := appfile.Parse("fly.toml", b, appfile.Options{Region: "local"})
	if err != nil {
		t.Fatal(err)
	}
	if f.Release.PrimaryRegion != "local" || f.Release.Scale.RegionMin["local"] != 2 || f.Release.Config.Env["PRIMARY_REGION"] != "local" {
		t.Errorf("got %s", asJSON(t, f))
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"good", "bad", "examples"} {
		for _, path := range configs(f, dir, 1) {
			b, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(filepath.Ext(path), b)
		}
	}
	f.Fuzz(func(t *testing.T, ext string, b []byte) {
		got, err := appfile.Parse("f"+ext, b, appfile.Options{AllowUnsupported: true})
		if err != nil {
			if !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		for _, cfg := range got.Configs() {
			if err := cfg.Guest.Check(); err != nil {
				t.Error(err)
			}
			for i := range cfg.Services {
				if err := cfg.Services[i].Check(); err != nil {
					t.Error(err)
				}
			}
		}
		if s := got.Release.Scale; s != nil {
			if _, err := s.Apply(volant.Scale{}); err != nil {
				t.Error(err)
			}
		}
		if _, err := json.Marshal(got); err != nil {
			t.Error(err)
		}
	})
}
