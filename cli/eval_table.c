/* eval_table.c - what a run of `heddle eval` found, as text: each task, then each plan. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "eval_int.h"
#include "summary.h"
#include "term.h"

static const char *sign_of(double value)
{
    return value < 0 ? "-" : "+";
}

static void print_difference(const char *plan, double value, const eval_interval *d, double unit,
                             const char *more)
{
    char range[64] = "";
    if (!isnan(d->low))
        snprintf(range, sizeof range, " [%s%.2f, %s%.2f]", sign_of(d->low), fabs(d->low * unit),
                 sign_of(d->high), fabs(d->high * unit));
    printf("    %-34s %7.2f  %s%.2f%s%s\n", plan, value * unit, sign_of(d->value), fabs(d->value * unit),
           range, more);
}

/* RULER's samples have a frame and a number of answers of their own, whatever the run's. */
static void fit_ruler(summary_filter *filter)
{
    filter->frame = "raw";
    filter->answers = 1;
}

static summary_filter filter_of(const eval_run *run, const char *what, const char *task)
{
    bool is_task = !strcmp(what, "task");
    return (summary_filter){.what = what,
                            .model_hash = run->model_hash,
                            .kv = run->options->common.kv_type,
                            .frame = is_task ? run->frame : NULL,
                            .task = task,
                            .governs = is_task                                              ? NULL
                                       : run->options->is_last && strcmp(what, "agreement") ? "last"
                                                                                            : "all",
                            .context = run->context,
                            .answers = is_task ? run->options->answers : 0,
                            .seed = is_task ? run->options->seed : -1,
                            .is_invariant = run->options->common.is_invariant};
}

/* ---- tasks ---- */

typedef struct plan_total { /* over the deciding tasks */
    double sum, worst;
    char worst_task[64];
    int n;
} plan_total;

/* Of the plan over that of dense; NaN where there is no row of both. */
static double control_difference(const eval_run *run, const summary_filter *filter, const char *const *pair,
                                 const char *num, const char *den)
{
    summary s;
    double difference = NAN;
    if (!summary_align(&s, &run->results, filter, pair, 2, num, den) && s.n)
        difference = eval_ratio(s.num[0], s.den[0], s.n) - eval_ratio(s.num[1], s.den[1], s.n);
    summary_free(&s);
    return difference;
}

static void print_task(const eval_run *run, const char *task, bool is_ruler, plan_total *totals)
{
    summary_filter filter = filter_of(run, "task", task);
    if (is_ruler) fit_ruler(&filter);
    summary s;
    const char *controls[] = {run->plans[0].hash, run->plans[1].hash};
    if (summary_align(&s, &run->results, &filter, controls, 2, "right", "tokens") || !s.n) {
        summary_free(&s);
        return;
    }
    double dense = eval_ratio(s.num[0], s.den[0], s.n), window = eval_ratio(s.num[1], s.den[1], s.n),
           n_tokens = 0;
    for (int64_t i = 0; i < s.n; i++) n_tokens += s.den[0][i];
    bool is_deciding = summary_decides(dense, window);
    printf("%-16s dense %6.2f  window %6.2f  %s (%" PRId64 " documents, %.0f answer tokens)\n", task,
           100 * dense, 100 * window, is_deciding ? "decides" : "decides nothing here", s.n, n_tokens);
    summary_free(&s);
    for (int p = EVAL_CONTROLS; p < run->n_plans; p++) {
        const char *pair[] = {run->plans[p].hash, run->plans[0].hash};
        char more[96] = "";
        double nll = control_difference(run, &filter, pair, "nll", "tokens");
        double exact = control_difference(run, &filter, pair, "exact", "questions");
        if (isnan(nll)) continue;
        snprintf(more, sizeof more, "  nll %s%.3f  exact %s%.1f", sign_of(nll), fabs(nll), sign_of(exact),
                 fabs(100 * exact));
        if (summary_align(&s, &run->results, &filter, pair, 2, "right", "tokens")) continue;
        eval_interval d = eval_difference(s.num[0], s.den[0], s.num[1], s.den[1], s.n, 1);
        print_difference(run->plans[p].spec, eval_ratio(s.num[0], s.den[0], s.n), &d, 100, more);
        summary_free(&s);
        if (!is_deciding) continue;
        plan_total *total = &totals[p];
        total->sum += d.value;
        if (!total->n++ || d.value < total->worst) {
            total->worst = d.value;
            snprintf(total->worst_task, sizeof total->worst_task, "%s", task);
        }
    }
}

/* "reads 12.3 %", of lists as they were made; "reads at most ..." in results that did not count them. */
static const char *share_text(const eval_run *run, const summary_filter *filter, int p, char *text, size_t n)
{
    bool is_counted = false;
    double share = summary_share(&run->results, filter, run->plans[p].hash, &is_counted);
    snprintf(text, n, "reads %s%.1f %%", is_counted ? "" : "at most ", 100 * share);
    return text;
}

static void print_tasks(const eval_run *run)
{
    plan_total totals[EVAL_MAX_PLANS] = {{0}};
    int n_wanted = 0;
    for (int task = 0; task < EVAL_N_TASKS; task++) n_wanted += run->wants_task[task];
    if (!n_wanted && !run->options->rulers.n) return;
    printf(
        "\nAnswer tokens right, %%; points against dense [95 %% by document]; nll: nats a token against dense\n");
    for (int task = 0; task < EVAL_N_TASKS; task++)
        if (run->wants_task[task]) print_task(run, eval_tasks[task].name, false, totals);
    for (int i = 0; i < run->options->rulers.n; i++) {
        char name[64];
        eval_ruler_task(run->options->rulers.items[i], name, sizeof name);
        print_task(run, name, true, totals);
    }
    for (int p = EVAL_CONTROLS; p < run->n_plans; p++) {
        const plan_total *total = &totals[p];
        if (!total->n) continue;
        char share[64];
        summary_filter filter = filter_of(run, "task", NULL);
        if (!n_wanted) fit_ruler(&filter); /* they are all there is */
        printf("%-34s mean of %d deciding tasks %s%.2f, worst %s%.2f (%s); %s\n", run->plans[p].spec,
               total->n, sign_of(total->sum), fabs(100 * total->sum / total->n), sign_of(total->worst),
               fabs(100 * total->worst), total->worst_task, share_text(run, &filter, p, share, sizeof share));
    }
}

/* ---- loss ---- */

/* R over a pair of members, on the documents (of one text) that dense, window and the plan have. */
static eval_interval recovery(const eval_run *run, int p, const char *text, const char *nll,
                              const char *tokens)
{
    summary_filter filter = filter_of(run, "loss", NULL);
    filter.text = text;
    const char *plans[] = {run->plans[1].hash, run->plans[p].hash, run->plans[0].hash};
    summary s;
    eval_interval r = {NAN, NAN, NAN};
    if (!summary_align(&s, &run->results, &filter, plans, 3, nll, tokens) && s.n)
        r = eval_recovery(s.num[0], s.num[1], s.num[2], s.den[0], s.n, 1);
    summary_free(&s);
    return r;
}

/* Each text by itself, as the worst one counts. */
static void print_loss_texts(const eval_run *run, int p)
{
    char text[64], other[64];
    for (int i = 0; i < run->n_sources; i++) {
        bool is_first = true;
        summary_text_of(run->sources[i].name, text, sizeof text);
        for (int j = 0; j < i; j++) {
            summary_text_of(run->sources[j].name, other, sizeof other);
            is_first &= strcmp(text, other) != 0;
        }
        if (!is_first) continue;
        summary_filter filter = filter_of(run, "loss", NULL);
        const char *pair[] = {run->plans[p].hash, run->plans[0].hash};
        filter.text = text;
        double d = control_difference(run, &filter, pair, "last_nll", "last_tokens");
        eval_interval r = recovery(run, p, text, "last_nll", "last_tokens");
        if (!isnan(d))
            printf("        %-26s perplexity %s%.2f %%  R %.3f\n", text, sign_of(d), fabs(100 * expm1(d)),
                   r.value);
    }
}

static void print_loss_plan(const eval_run *run, int p)
{
    summary_filter filter = filter_of(run, "loss", NULL);
    const char *pair[] = {run->plans[p].hash, run->plans[0].hash};
    summary s;
    if (summary_align(&s, &run->results, &filter, pair, 2, "last_nll", "last_tokens") || !s.n) {
        summary_free(&s);
        return;
    }
    eval_interval d = eval_difference(s.num[0], s.den[0], s.num[1], s.den[1], s.n, 1);
    eval_interval r = recovery(run, p, NULL, "last_nll", "last_tokens"),
                  g = recovery(run, p, NULL, "gain_nll", "gain_tokens");
    char more[192], range[48] = "", share[64];
    if (!isnan(r.low)) snprintf(range, sizeof range, " [%.3f, %.3f]", r.low, r.high);
    snprintf(more, sizeof more, "  perplexity %s%.2f %%  R %.3f%s  gain tokens %.3f  %s", sign_of(d.value),
             fabs(100 * expm1(d.value)), r.value, range, g.value,
             share_text(run, &filter, p, share, sizeof share));
    print_difference(run->plans[p].spec, eval_ratio(s.num[0], s.den[0], s.n), &d, 1, more);
    summary_free(&s);
    if (run->n_sources > 1) print_loss_texts(run, p);
}

static void print_agreement(const eval_run *run)
{
    summary_filter filter = filter_of(run, "agreement", NULL);
    printf(
        "\nOf dense's 256 greedy tokens, %% that the plan would have written; tokens before the first other one\n");
    for (int p = 0; p < run->n_plans; p++) {
        const char *plan[] = {run->plans[p].hash};
        summary s, f;
        int code = summary_align(&s, &run->results, &filter, plan, 1, "same", "tokens");
        code |= summary_align(&f, &run->results, &filter, plan, 1, "first", NULL);
        eval_interval d = eval_ratio_interval(s.num[0], s.den[0], s.n, 1);
        char range[64] = "";
        if (!isnan(d.low)) snprintf(range, sizeof range, " [%.2f, %.2f]", 100 * d.low, 100 * d.high);
        if (!code && s.n)
            printf("    %-34s %7.2f%s  first %.0f\n", run->plans[p].spec, 100 * d.value, range,
                   eval_ratio(f.num[0], f.den[0], f.n));
        summary_free(&s);
        summary_free(&f);
    }
}

/* ---- lists ---- */

typedef struct list_figures {
    double captured, best, worst; /* worst: of a layer and head, the share that is held */
    int64_t worst_layer, worst_head;
    double step_overlap, list_tokens;
    int64_t n_makers;
} list_figures;

static void add_list_row(list_figures *f, const json_t *row)
{
    const json_t *captured = json_object_get(row, "captured"), *best = json_object_get(row, "oracle");
    for (size_t i = 0; i < json_array_size(captured); i++)
        for (size_t h = 0; h < json_array_size(json_array_get(captured, i)); h++) {
            double held = json_number_value(json_array_get(json_array_get(captured, i), h));
            double most = json_number_value(json_array_get(json_array_get(best, i), h));
            f->captured += held;
            f->best += most;
            if (most <= 0 || held / most >= f->worst) continue;
            f->worst = held / most;
            f->worst_layer = row_count(row, "layers", (int64_t)i, INT32_MAX);
            f->worst_head = (int64_t)h;
        }
    for (size_t i = 0; i < json_array_size(json_object_get(row, "makers")); i++, f->n_makers++) {
        f->step_overlap += row_number_at(row, "step_overlap", (int64_t)i);
        f->list_tokens += row_number_at(row, "list_tokens", (int64_t)i);
    }
}

static void print_lists(const eval_run *run)
{
    printf(
        "\nDense attention mass on the lists' tokens over that of the best list as long, %%; the worst layer and KV "
        "head;\ntokens of a list; what it has of the list of the step before, %%\n");
    for (int p = 1; p < run->n_plans; p++) {
        summary_filter filter = filter_of(run, "lists", NULL);
        list_figures f = {.worst = 2};
        const char *key;
        json_t *row;
        filter.governs = NULL;
        json_object_foreach(run->results.by_key, key, row)
        {
            if (summary_fits(&filter, row) && !strcmp(row_text(row, "plan_hash"), run->plans[p].hash))
                add_list_row(&f, row);
        }
        if (f.best <= 0) continue;
        printf("    %-34s %7.2f  worst %.1f (layer %" PRId64 ", head %" PRId64 ")  %.0f tokens  %.1f kept\n",
               run->plans[p].spec, 100 * f.captured / f.best, 100 * f.worst, f.worst_layer, f.worst_head,
               f.list_tokens / (double)f.n_makers, 100 * f.step_overlap / (double)f.n_makers);
    }
}

void eval_print_tables(const eval_run *run)
{
    char context[TERM_COUNT];
    printf("%s, KV %s, %s tokens, %s\n", run->setup.info.name, run->options->common.kv_type,
           term_count(context, run->context), run->frame);
    print_tasks(run);
    if (run->wants_loss) {
        printf("\nLast quarter of %s-token documents: nats a token, against dense [95 %% by document]\n",
               context);
        for (int p = 0; p < run->n_plans; p++) print_loss_plan(run, p);
    }
    if (run->wants_agreement) print_agreement(run);
    if (run->wants_lists) print_lists(run);
}
