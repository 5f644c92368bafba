package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/internal/atomicfile"
)

func newCA(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ca", Short: "Trust the server's development CA, which signs for names such as APP.localhost",
		Long: `Trust the server's development CA, which signs for names such as APP.localhost.

A server makes its own CA at its first start. It may sign for names of development and private use (localhost,
test, internal, local, home.arpa, example) and for the server's own domain, and for no others: programs refuse
what it might sign for a name of the Internet.`,
	}
	cmd.AddCommand(newCATrust(g), newCAUntrust(g))
	return cmd
}

func newCATrust(g *globals) *cobra.Command {
	var show bool
	store := systemStore()
	cmd := &cobra.Command{
		Use: "trust", Short: "Put the CA into this machine's certificate store (as root), or print it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			b, err := c.CA(cmd.Context())
			if err != nil {
				return err
			}
			ca, err := cert.Trustable(b)
			if err != nil {
				return err
			}
			if show {
				return g.print(cmd, ca, func(w io.Writer) { fmt.Fprint(w, ca.PEM) })
			}
			file, err := store.add(cmd.Context(), ca)
			if err != nil {
				return err
			}
			return g.print(cmd, ca, func(w io.Writer) {
				fmt.Fprintf(w, "%s is trusted for %s and what is below (%s).\n", ca.Name, strings.Join(ca.Domains, ", "), file)
				fmt.Fprintln(w, "Browsers with a store of their own need it too: import the output of `volant ca trust --print`.")
			})
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "only print the certificate, as PEM")
	store.flags(cmd)
	return cmd
}

func newCAUntrust(g *globals) *cobra.Command {
	store := systemStore()
	cmd := &cobra.Command{
		Use: "untrust", Short: "Take each CA of a Volant server out of this machine's certificate store", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			gone, err := store.remove(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, gone, func(w io.Writer) {
				if len(gone) == 0 {
					fmt.Fprintln(w, "No CA of Volant is trusted here.")
				}
				for _, f := range gone {
					fmt.Fprintf(w, "removed %s\n", f)
				}
			})
		},
	}
	store.flags(cmd)
	return cmd
}

// trustStore is the system's certificate store, as Debian has it.
type trustStore struct {
	dir    string
	update string // program that makes the store anew
}

func systemStore() *trustStore {
	return &trustStore{dir: "/usr/local/share/ca-certificates", update: "update-ca-certificates"}
}

func (s *trustStore) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.dir, "store", s.dir, "directory of the certificates that the administrator trusts")
	cmd.Flags().StringVar(&s.update, "update", s.update, "program that makes the system's store anew")
}

func (s *trustStore) add(ctx context.Context, ca cert.Trusted) (string, error) {
	update, err := exec.LookPath(s.update)
	if err != nil {
		return "", volant.Errorf(volant.ErrPrecondition, "%s is not here, which makes the system's certificate store anew", s.update).
			WithRemedy("install ca-certificates, or put the output of `volant ca trust --print` where this system wants it")
	}
	file := filepath.Join(s.dir, "volant-"+ca.Node+".crt")
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", s.explain(err)
	}
	if err := atomicfile.Write(file, []byte(ca.PEM), 0o644); err != nil {
		return "", s.explain(err)
	}
	return file, s.renew(ctx, update)
}

func (s *trustStore) remove(ctx context.Context) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "volant-????????.crt"))
	if err != nil || len(files) == 0 {
		return []string{}, err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return nil, s.explain(err)
		}
	}
	update, err := exec.LookPath(s.update)
	if err != nil {
		return files, volant.Errorf(volant.ErrPrecondition, "the files are gone, but %s is not here to make the store anew", s.update)
	}
	return files, s.renew(ctx, update)
}

func (s *trustStore) renew(ctx context.Context, update string) error {
	if out, err := exec.CommandContext(ctx, update).CombinedOutput(); err != nil {
		return volant.Errorf(volant.ErrPrecondition, "%s: %v: %s", update, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (s *trustStore) explain(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return volant.Errorf(volant.ErrForbidden, "the certificate store in %s belongs to root", s.dir).
			WithRemedy("run this with sudo, or import the output of `volant ca trust --print` into your browser")
	}
	return err
}
