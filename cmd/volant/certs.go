package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newCerts(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "certs", Short: "Say which host names an app serves, and with which certificates", Aliases: []string{"certificates"}}
	cmd.AddCommand(newCertsAdd(g), newCertsList(g), newCertsShow(g), newCertsCheck(g), newCertsRemove(g))
	return cmd
}

func newCertsAdd(g *globals) *cobra.Command {
	var chain, key string
	cmd := g.askApp("add HOST", "Serve a host name", func(c *call, app string) error {
		host := c.args[0]
		if (chain == "") != (key == "") {
			return volant.Invalidf("a certificate needs its key").WithRemedy("name both: --cert FILE --key FILE")
		}
		var out api.Certificate
		var err error
		if chain == "" {
			out, err = c.AddHost(c.ctx, app, host)
		} else {
			in := api.CreateCustomCertificate{Hostname: host}
			if in.Fullchain, err = readPEM(chain); err != nil {
				return err
			}
			if in.PrivateKey, err = readPEM(key); err != nil {
				return err
			}
			out, err = c.AddCertificate(c.ctx, app, in)
		}
		if err != nil {
			return err
		}
		return c.say(out, func(w io.Writer) { certText(w, out) })
	})
	cmd.Args = cobra.ExactArgs(1)
	cmd.Example = "  volant certs add www.example.com --cert fullchain.pem --key privkey.pem --app web"
	cmd.Flags().StringVar(&chain, "cert", "", "file of the certificate chain, PEM, the host's own first")
	cmd.Flags().StringVar(&key, "key", "", "file of the private key, PEM")
	return cmd
}

// maxPEM bounds what is read of a file; the server takes less.
const maxPEM = 128 << 10

func readPEM(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", volant.Invalidf("%v", err).WithRemedy("name a file that you may read")
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return string(b), nil
}

func certText(w io.Writer, v api.Certificate) {
	rows := [][]string{{"Host", v.Hostname}, {"Status", v.Status}}
	for _, e := range v.Certificates {
		rows = append(rows, []string{"Certificate", e.Source}, []string{"Issuer", e.Issuer}, []string{"Expires", e.ExpiresAt.Format(time.RFC3339)})
	}
	rows = append(rows, []string{"Point it to", strings.Join(append(v.DNSRequirements.A, v.DNSRequirements.AAAA...), " ")})
	if v.DNSRecords != nil {
		rows = append(rows, []string{"It leads to", strings.Join(v.DNSRecords.ResolvedAddresses, " ")})
	}
	for _, p := range v.ValidationErrors {
		rows = append(rows, []string{"Problem", p.Message + "; " + p.Remediation})
	}
	table(w, rows)
}

func newCertsList(g *globals) *cobra.Command {
	cmd := g.askApp("list [APP]", "List the host names that an app serves", func(c *call, app string) error {
		all, err := c.Certificates(c.ctx, app)
		if err != nil {
			return err
		}
		return sayRows(c, all, []string{"HOST", "STATUS", "CERTIFICATE", "SET"}, func(s api.CertificateSummary) []string {
			source := "none"
			if s.HasCustomCertificate {
				source = "custom"
			}
			return []string{s.Hostname, s.Status, source, ago(s.UpdatedAt)}
		})
	})
	cmd.Aliases = []string{"ls"}
	return cmd
}

func newCertsShow(g *globals) *cobra.Command {
	cmd := g.askApp("show HOST", "Show a host name and its certificate", func(c *call, app string) error {
		v, err := c.Certificate(c.ctx, app, c.args[0])
		if err != nil {
			return err
		}
		return c.say(v, func(w io.Writer) { certText(w, v) })
	})
	cmd.Args = cobra.ExactArgs(1)
	return cmd
}

func newCertsCheck(g *globals) *cobra.Command {
	cmd := g.askApp("check HOST", "Look up where a host name leads", func(c *call, app string) error {
		v, err := c.CheckCertificate(c.ctx, app, c.args[0])
		if err != nil {
			return err
		}
		return c.say(v, func(w io.Writer) { certText(w, v) })
	})
	cmd.Args = cobra.ExactArgs(1)
	return cmd
}

func newCertsRemove(g *globals) *cobra.Command {
	cmd := g.askApp("remove HOST", "Serve a host name no longer", func(c *call, app string) error {
		if err := c.RemoveCertificate(c.ctx, app, c.args[0]); err != nil {
			return err
		}
		return c.sayDone("removed", c.args[0], "App "+app+" no longer serves "+c.args[0]+".")
	})
	cmd.Args, cmd.Aliases = cobra.ExactArgs(1), []string{"rm"}
	return cmd
}
