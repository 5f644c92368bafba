package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
)

// examples counts the config files in the manner of public ones that are accepted as they are, deployed with
// --image.
func examples(context.Context, *bench) ([]Row, error) {
	const dir = "appfile/testdata/examples"
	files, err := filepath.Glob(dir + "/*.toml")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no files: run this in the root of the repository", dir)
	}
	var taken int
	var refused []string
	for _, path := range files {
		if err := acceptExample(path); err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", filepath.Base(path), err))
			continue
		}
		taken++
	}
	note := fmt.Sprintf("of %d fly.toml files for Go, Node, Rails, Phoenix, Django, Laravel, static, worker, multi-process and websocket apps", len(files))
	r := Row{Name: "examples", Value: float64(taken), Unit: "files", Note: strings.Join(append([]string{note}, refused...), "\n")}
	return []Row{r.atLeast(10)}, nil
}

// acceptExample reads a file as a deploy does, and looks at the outcome as the server does.
func acceptExample(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := appfile.Parse(path, b, appfile.Options{HasImage: true, ReadFile: func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(filepath.Dir(path), name))
	}})
	if err != nil {
		return err
	}
	var errs []error
	for _, cfg := range f.Configs() {
		errs = append(errs, cfg.Guest.Check())
		for i := range cfg.Services {
			errs = append(errs, cfg.Services[i].Check())
		}
	}
	if f.Release.Scale != nil {
		_, err := f.Release.Scale.Apply(volant.Scale{})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
