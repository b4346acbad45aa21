from .budgets import (
    MEASURES as MEASURES,
    Budget as Budget,
    CostFunction as CostFunction,
    InfeasibleBudgetError as InfeasibleBudgetError,
    Measures as Measures,
    check_reachable as check_reachable,
    exact_measures as exact_measures,
    fit_width as fit_width,
    measure_all as measure_all,
    parse_count as parse_count,
    with_width as with_width,
)
from .chains import (
    chain_from_json as chain_from_json,
    chain_to_json as chain_to_json,
    distinct as distinct,
    fit_chain as fit_chain,
    is_chain as is_chain,
)
from .choice_costs import (
    Candidate as Candidate,
    Chosen as Chosen,
    Item as Item,
    count_choices as count_choices,
)
from .costs import (
    Cost as Cost,
    architecture_cost as architecture_cost,
    block_cost as block_cost,
    head_cost as head_cost,
    operation_cost as operation_cost,
    reduction_cost as reduction_cost,
    stem_cost as stem_cost,
)
from .graph_costs import GraphCosts as GraphCosts, Links as Links, count_model as count_model
from .latency import LatencyMeter as LatencyMeter, measure_table as measure_table
from .latency_table import latency_from_table as latency_from_table, read_table as read_table
