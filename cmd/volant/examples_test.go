package main

import (
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/volant-edge/volant/appfile"
	"github.com/volant-edge/volant/volanttest"
)

// The server takes what the example files become, as it takes any release.
func TestTheServerTakesTheExamples(t *testing.T) {
	files, err := filepath.Glob("../../appfile/testdata/examples/*.toml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		for _, path := range files {
			f, _, err := readAppfile(path, appfile.Options{HasImage: true, Region: "local"})
			if err != nil {
				t.Errorf("%s: %v", filepath.Base(path), err)
				continue
			}
			if _, err := p.API.CreateApp(t.Context(), f.App, ""); err != nil {
				t.Fatal(err)
			}
			f.Release.Image = string(volanttest.Image)
			if _, err := p.API.CreateRelease(t.Context(), f.App, f.Release); err != nil {
				t.Errorf("%s: %v", filepath.Base(path), err)
			}
		}
	})
}
