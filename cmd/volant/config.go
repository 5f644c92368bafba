package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/appfile"
)

func newConfig(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at an app's config file"}
	cmd.AddCommand(newConfigValidate(g), newConfigShow())
	return cmd
}

func newConfigValidate(g *globals) *cobra.Command {
	var file string
	var opt appfile.Options
	cmd := &cobra.Command{
		Use: "validate", Short: "Say what is wrong with the config file; ask no server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt.HasImage = true // a deploy may be given one
			f, name, err := readAppfile(file, opt)
			if err != nil {
				return err
			}
			if name == "" {
				return noConfig()
			}
			answer := struct {
				Valid    bool              `json:"valid"`
				File     string            `json:"file"`
				Warnings []appfile.Problem `json:"warnings"`
			}{true, name, append([]appfile.Problem{}, f.Warnings...)}
			return g.print(cmd, answer, func(w io.Writer) {
				warn(cmd.ErrOrStderr(), f)
				fmt.Fprintf(w, "%s is valid.\n", name)
			})
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "the config file (default: volant.toml here, or fly.toml)")
	cmd.Flags().BoolVar(&opt.Strict, "strict", false, "fail where there are warnings")
	cmd.Flags().BoolVar(&opt.AllowUnsupported, "allow-unsupported", false, "only warn of keys that are not acted on")
	return cmd
}

func newConfigShow() *cobra.Command {
	var file string
	opt := appfile.Options{HasImage: true}
	cmd := &cobra.Command{
		Use: "show", Short: "Show what the config file becomes: the release, as JSON", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, name, err := readAppfile(file, opt)
			if err != nil {
				return err
			}
			if name == "" {
				return noConfig()
			}
			warn(cmd.ErrOrStderr(), f)
			f.Warnings = nil
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			enc.SetEscapeHTML(false)
			return enc.Encode(f)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "the config file (default: volant.toml here, or fly.toml)")
	cmd.Flags().BoolVar(&opt.AllowUnsupported, "allow-unsupported", false, "only warn of keys that are not acted on")
	return cmd
}

func noConfig() error {
	return volant.Errorf(volant.ErrNotFound, "there is no %s here", appfile.Names[0]).
		WithRemedy("go to the app's directory, name a file with --config, or make one with `volant launch --image IMAGE`")
}

// warn tells the warnings of a config file.
func warn(w io.Writer, f *appfile.File) {
	for _, p := range f.Warnings {
		fmt.Fprintf(w, "warning: %s\n", clean(p.String(), ""))
	}
}

// readAppfile reads the named config, or the one of this directory, whose name it returns. Without one the
// file is empty.
func readAppfile(name string, opt appfile.Options) (*appfile.File, string, error) {
	if name == "" {
		name = configHere()
	}
	if name == "" {
		return &appfile.File{}, "", nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, "", volant.Errorf(volant.ErrNotFound, "config: %v", err)
	}
	opt.ReadFile = func(path string) ([]byte, error) {
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(name), path)
		}
		return readBounded(path)
	}
	f, err := appfile.Parse(name, b, opt)
	return f, name, err
}

// readBounded reads a file that travels in a config.
func readBounded(path string) ([]byte, error) {
	const most = 1 << 20
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New(path + " is no file")
	case st.Size() > most:
		return nil, fmt.Errorf("%s has %d bytes: the most is %d", path, st.Size(), most)
	}
	return os.ReadFile(path)
}
